use pmem::{MEMORY, Options, Region, Shard};
use proptest::prelude::*;

use super::*;

fn shard() -> Shard {
    let options = Options { size: Some(2 << 20), ..Options::default() };
    Region::open(MEMORY, &options).expect("memory").into_shard().expect("a fresh store has one shard")
}

fn room(shard: &Shard) -> Room<'_> {
    Room { arena: shard.arena(), reserve: 64, max_bytes: 512 << 20, is_known: true }
}

fn slot(shard: &Shard, bytes: &[u8]) -> Extent {
    let mut buffer = shard.arena().take().expect("a buffer");
    assert!(buffer.arrive(128, bytes));
    buffer.into_extent(128, bytes.len() as u16).expect("it fits")
}

/// All requests of a conversation that comes in pieces, and how it ends.
fn decode(shard: &Shard, pieces: &[&[u8]], room: &Room<'_>) -> (Vec<Vec<Vec<u8>>>, Option<ProtocolError>) {
    let (mut decoder, mut spare, mut all) = (Decoder::default(), Vec::new(), Vec::new());
    for piece in pieces.iter().filter(|piece| !piece.is_empty()) {
        let mut input = Some(slot(shard, piece));
        loop {
            match decoder.next(&mut input, &mut spare, room) {
                Ok(None) => break,
                Ok(Some(request)) => {
                    all.push((0..request.len()).map(|index| request.arg(index).into_owned()).collect());
                    spare.push(request);
                }
                Err(error) => return (all, Some(error)),
            }
        }
        assert!(input.is_none(), "all of a slot is used before another one is asked for");
    }
    (all, None)
}

fn refused(text: &[u8]) -> Option<ProtocolError> {
    let shard = shard();
    decode(&shard, &[text], &room(&shard)).1
}

fn written(requests: &[Vec<Vec<u8>>]) -> Vec<u8> {
    let mut text = Vec::new();
    for request in requests {
        text.extend_from_slice(format!("*{}\r\n", request.len()).as_bytes());
        for arg in request {
            text.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            text.extend_from_slice(arg);
            text.extend_from_slice(b"\r\n");
        }
    }
    text
}

fn pieces<'a>(mut text: &'a [u8], lens: &[usize]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for len in lens.iter().cycle() {
        if text.is_empty() {
            break;
        }
        let (piece, rest) = text.split_at((*len).min(text.len()));
        pieces.push(piece);
        text = rest;
    }
    pieces
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn requests_come_out_as_they_went_in_however_they_are_cut(
        requests in prop::collection::vec(
            prop::collection::vec(
                prop_oneof![4 => prop::collection::vec(any::<u8>(), 0..20), 1 => prop::collection::vec(any::<u8>(), 500..3000)],
                1..5,
            ),
            0..5,
        ),
        lens in prop::collection::vec(prop_oneof![1..8usize, 100..1448usize], 1..5),
    ) {
        let shard = shard();
        let free = shard.arena().free_buffers();
        let text = written(&requests);
        prop_assert_eq!(decode(&shard, &pieces(&text, &lens), &room(&shard)), (requests, None));
        prop_assert_eq!(shard.arena().free_buffers(), free, "no buffer is lost");
    }

    #[test]
    fn whatever_comes_is_taken_or_refused_alike_however_it_is_cut(
        text in "[*$0-9a-c\"'\\\\ \r\n-]{0,60}",
        lens in prop::collection::vec(1..20usize, 1..4),
    ) {
        let shard = shard();
        let whole = decode(&shard, &[text.as_bytes()], &room(&shard));
        prop_assert_eq!(decode(&shard, &pieces(text.as_bytes(), &lens), &room(&shard)), whole);
    }
}

#[test]
fn a_long_argument_stays_where_it_arrived_and_one_in_small_pieces_holds_few_buffers() {
    let shard = shard();
    let free = shard.arena().free_buffers();
    let text = written(&[vec![b"SET".to_vec(), b"key".to_vec(), vec![b'v'; 1024]]]);
    let arrived = slot(&shard, &text);
    let address = arrived.bytes().as_ptr() as usize;
    let (mut decoder, mut spare) = (Decoder::default(), Vec::new());
    let mut input = Some(arrived);
    let request = decoder.next(&mut input, &mut spare, &room(&shard)).unwrap().expect("it is whole");
    let value = request.in_place(2).expect("it is long");
    assert_eq!(value.len(), 1);
    let place = value[0].bytes().as_ptr() as usize - address;
    assert_eq!(place, text.len() - 1026, "nobody has moved it");
    assert_eq!(request.in_place(1).map(<[Extent]>::len), None, "a short one is copied");
    drop(request);

    let text = written(&[vec![b"SET".to_vec(), b"key".to_vec(), vec![b'v'; 20_000]]]);
    for byte in text[..10_000].chunks(1) {
        let mut input = Some(slot(&shard, byte));
        assert!(decoder.next(&mut input, &mut spare, &room(&shard)).unwrap().is_none());
    }
    let held = free - shard.arena().free_buffers();
    assert!(held <= 6, "{held} buffers hold 10 KB");
}

#[test]
fn what_is_no_request_is_refused_in_redis_words() {
    for (text, why) in [
        (&b"*x\r\n"[..], "Protocol error: invalid multibulk length"),
        (b"*2147483647\r\n", "Protocol error: invalid multibulk length"),
        (b"*1\r\nGET\r\n", "Protocol error: expected '$', got 'G'"),
        (b"*1\r\n\r\n", "Protocol error: expected '$', got '\\r'"),
        (b"*1\r\n$-1\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$536870913\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$3\r\nGETxx", "Protocol error: expected CRLF behind a bulk string"),
        (b"SET \"a\r\n", "Protocol error: unbalanced quotes in request"),
        (b"SET \"a\"b\r\n", "Protocol error: unbalanced quotes in request"),
    ] {
        assert_eq!(
            refused(text).map(|error| error.to_string()).as_deref(),
            Some(why),
            "{}",
            text.escape_ascii()
        );
    }
    let shard = shard();
    let line = [b'a'; 1400];
    let long: Vec<&[u8]> = std::iter::repeat_n(&line[..], 50).collect();
    assert_eq!(decode(&shard, &long, &room(&shard)).1, Some(ProtocolError::InlineLength));
    let long: Vec<&[u8]> = std::iter::once(&b"*"[..]).chain(long).collect();
    assert_eq!(decode(&shard, &long, &room(&shard)).1, Some(ProtocolError::ArgumentCountLine));
    let stranger = Room { is_known: false, ..room(&shard) };
    assert_eq!(decode(&shard, &[b"*11\r\n"], &stranger).1, Some(ProtocolError::StrangerCount));
    assert_eq!(decode(&shard, &[b"*1\r\n$16385\r\n"], &stranger).1, Some(ProtocolError::StrangerLength));
}

#[test]
fn lines_are_taken_apart_as_a_shell_would() {
    let shard = shard();
    let words = |line: &[u8]| {
        let (mut all, error) = decode(&shard, &[line], &room(&shard));
        assert_eq!(error, None);
        all.pop().unwrap_or_default()
    };
    assert_eq!(words(b"  SET  k\tv \r\n"), [&b"SET"[..], b"k", b"v"]);
    assert_eq!(words(b"SET 'a b' \"c\\x41\\n\\\"\"\n"), [&b"SET"[..], b"a b", b"cA\n\""]);
    assert_eq!(words(b"SET '' \"\"\n"), [&b"SET"[..], b"", b""]);
    assert_eq!(words(b"\r\n"), Vec::<Vec<u8>>::new());
}

#[test]
fn an_argument_for_which_there_is_no_room_is_dropped_and_the_next_request_is_taken() {
    let shard = shard();
    let free = shard.arena().free_buffers();
    let (mut decoder, mut spare) = (Decoder::default(), Vec::new());
    let room = Room { reserve: free - 4, ..room(&shard) };
    let mut text = written(&[vec![b"SET".to_vec(), b"key".to_vec(), vec![b'v'; 100_000]]]);
    text.extend_from_slice(b"PING\r\n");
    let mut all = Vec::new();
    for piece in text.chunks(1448) {
        let mut input = Some(slot(&shard, piece));
        while let Some(request) = decoder.next(&mut input, &mut spare, &room).unwrap() {
            all.push((request.is_cut(), request.arg(0).into_owned(), request.arg(2).into_owned()));
        }
        assert!(free - shard.arena().free_buffers() <= 5);
    }
    assert_eq!(all, [(true, b"SET".to_vec(), Vec::new()), (false, b"PING".to_vec(), Vec::new())]);
}
