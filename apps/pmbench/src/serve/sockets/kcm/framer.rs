//! The program that tells the kernel where an HTTP request ends, in the kernel's machine language
//! (Documentation/bpf/standardization/instruction-set.rst).

use rustix::io::Errno;

/// Longest head of a request: as far as the kernel's verifier is asked to follow.
const MAX_HEAD_BYTES: u32 = 1024;

/// The result for a head or a body that is too long.
const TOO_LONG: i32 = -Errno::MSGSIZE.raw_os_error();
/// The result for a length that is no number, and for a second one.
const MALFORMED: i32 = -Errno::BADMSG.raw_os_error();
/// The result where another request has begun.
const TOO_SOON: i32 = -Errno::PROTO.raw_os_error();

/// A register of the machine.
type Register = u8;

/// The byte that was read last, and the result of the program.
const BYTE: Register = 0;
const RESULT: Register = 0;
/// For use in between: they do not outlive the reading of a byte.
const A: Register = 1;
const B: Register = 2;
const C: Register = 3;
/// The packet, where the machine's loads want it to be.
const PACKET: Register = 6;
/// How many bytes are read.
const READ: Register = 7;
/// The last eight of them, the newest lowest, and the eight before.
const LAST: Register = 8;
const EARLIER: Register = 9;
const FRAME: Register = 10;

/// Where the length of the body is kept, from the end of the frame.
const LENGTH: i16 = -8;

const BLANK_LINE: i32 = i32::from_be_bytes(*b"\r\n\r\n");
/// The field's name with the line's end before it, in lower case, and the bit that makes letters so.
const NAME: [u64; 2] = [u64::from_be_bytes(*b"\ncontent"), u64::from_be_bytes(*b"-length:")];
const LETTERS: [u64; 2] = [0x0020_2020_2020_2020, 0x0020_2020_2020_2000];

/// The program, for bodies of up to `max_body_bytes`: an instruction in each number.
///
/// It gets what has arrived of a message as one packet, and returns how long the message is; or 0 if the packet ends
/// before the head does, which the machine's loads do by themselves. Numbers below 0 end the connection.
///
/// A message must begin with its packet, since the kernel does not tell where in it that would be otherwise (it hides
/// `strp_msg` from programs since Linux 5.16): a client has to await its reply before it sends the next request.
///
/// The verifier looks at each way through a loop's body on its own, and compares them only every few rounds. So each
/// round goes on in one way, and every other way leaves the loop for good: else their number doubles with each byte.
pub(super) fn program(max_body_bytes: u32) -> Vec<u64> {
    use Label::*;
    let mut code = Assembler::default();
    code.put(MOVE, PACKET, A);
    for register in [READ, LAST, EARLIER] {
        code.put_value(SET, register, 0);
    }

    code.at(Head);
    code.read();
    code.jump_if_blank_line(Bodiless);
    code.jump_if_name(Blank);
    code.jump_if_value(LESS, READ, MAX_HEAD_BYTES as i32, Head);
    code.at(HeadTooLong);
    code.finish(TOO_LONG);

    // Behind the name: blanks, digits, blanks, and the line's end (RFC 9112, section 5; RFC 9110, section 8.6).
    code.at(Blank);
    code.jump_if_value(NOT_LESS, READ, MAX_HEAD_BYTES as i32, HeadTooLong);
    code.read();
    code.jump_if_blank(Blank);
    code.put_value(SUBTRACT, BYTE, b'0'.into());
    code.jump_if_value(GREATER, BYTE, 9, Bad);
    code.store(LENGTH, BYTE);

    code.at(Digit);
    code.jump_if_value(NOT_LESS, READ, MAX_HEAD_BYTES as i32, HeadTooLong);
    code.read();
    code.put(MOVE, A, BYTE);
    code.put_value(SUBTRACT, A, b'0'.into());
    code.jump_if_value(GREATER, A, 9, AfterDigits);
    code.load(B, LENGTH);
    code.put_value(MULTIPLY_VALUE, B, 10);
    code.put(ADD, B, A);
    code.jump_if_value(GREATER, B, max_body_bytes as i32, HeadTooLong);
    code.store(LENGTH, B);
    code.jump(Digit);

    code.at(AfterDigits);
    code.jump_if_value(EQUAL, BYTE, b'\r'.into(), Rest);
    code.jump_if_blank(BlankAfter);
    code.at(Bad);
    code.finish(MALFORMED);
    code.at(BlankAfter);
    code.jump_if_value(NOT_LESS, READ, MAX_HEAD_BYTES as i32, HeadTooLong);
    code.read();
    code.jump(AfterDigits);

    // The rest of the head, in which there must not be a second length.
    code.at(Rest);
    code.jump_if_value(NOT_LESS, READ, MAX_HEAD_BYTES as i32, HeadTooLong);
    code.read();
    code.jump_if_blank_line(End);
    code.jump_if_name(Bad);
    code.jump(Rest);

    code.at(Bodiless);
    code.put_value(SET, A, 0);
    code.store(LENGTH, A);
    code.at(End);
    code.load(RESULT, LENGTH);
    code.put(ADD, RESULT, READ);
    code.load_packet_length(A);
    code.jump_if(GREATER_REGISTER, A, RESULT, Another);
    code.push(EXIT, 0, 0, 0, 0);
    code.at(Another);
    code.finish(TOO_SOON);
    code.finished()
}

/// Places in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Label {
    Head,
    HeadTooLong,
    Blank,
    Digit,
    AfterDigits,
    BlankAfter,
    Bad,
    Rest,
    Bodiless,
    End,
    Another,
}

/// Operations of 64 bits, on two registers.
const MOVE: u8 = 0xbf;
const ADD: u8 = 0x0f;
const OR: u8 = 0x4f;
const MULTIPLY: u8 = 0x2f;
const DIFFERENCE: u8 = 0xaf;
/// On the lower 32 bits.
const MOVE_LOW: u8 = 0xbc;
/// On a register and a value.
const SET: u8 = 0xb7;
const ADD_VALUE: u8 = 0x07;
const SUBTRACT: u8 = 0x17;
const MULTIPLY_VALUE: u8 = 0x27;
const DIFFERENCE_VALUE: u8 = 0xa7;
const SHIFT_LEFT: u8 = 0x67;
const SHIFT_RIGHT: u8 = 0x77;
/// Jumps, to compare with a value.
const ALWAYS: u8 = 0x05;
const EQUAL: u8 = 0x15;
const GREATER: u8 = 0x25;
const NOT_LESS: u8 = 0x35;
const LESS: u8 = 0xa5;
/// To compare with a register.
const GREATER_REGISTER: u8 = 0x2d;
/// Memory: a byte of the packet at the place in a register, constants, the frame, the packet's description.
const LOAD_PACKET_BYTE: u8 = 0x50;
const LOAD_CONSTANT: u8 = 0x18;
const STORE: u8 = 0x7b;
const LOAD: u8 = 0x79;
const LOAD_WORD: u8 = 0x61;
const EXIT: u8 = 0x95;

/// Puts instructions together.
#[derive(Default)]
struct Assembler {
    code: Vec<u64>,
    /// Where the labels are.
    labels: Vec<(Label, usize)>,
    /// Where jumps are, and where they lead to.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn push(&mut self, operation: u8, to: Register, from: Register, offset: i16, value: i32) {
        self.code.push(
            u64::from(operation)
                | u64::from(to | from << 4) << 8
                | u64::from(offset.cast_unsigned()) << 16
                | u64::from(value.cast_unsigned()) << 32,
        );
    }

    fn put(&mut self, operation: u8, to: Register, from: Register) {
        self.push(operation, to, from, 0, 0);
    }

    fn put_value(&mut self, operation: u8, to: Register, value: i32) {
        self.push(operation, to, 0, 0, value);
    }

    fn put_constant(&mut self, to: Register, value: u64) {
        self.push(LOAD_CONSTANT, to, 0, 0, value as u32 as i32);
        self.code.push(value >> 32 << 32);
    }

    fn store(&mut self, place: i16, from: Register) {
        self.push(STORE, FRAME, from, place, 0);
    }

    fn load(&mut self, to: Register, place: i16) {
        self.push(LOAD, to, FRAME, place, 0);
    }

    /// `len`, which is the first field of the packet's description (`struct __sk_buff` of linux/bpf.h).
    fn load_packet_length(&mut self, to: Register) {
        self.push(LOAD_WORD, to, PACKET, 0, 0);
    }

    fn at(&mut self, label: Label) {
        self.labels.push((label, self.code.len()));
    }

    fn jump(&mut self, to: Label) {
        self.jump_if_value(ALWAYS, 0, 0, to);
    }

    fn jump_if_value(&mut self, condition: u8, left: Register, right: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(condition, left, 0, 0, right);
    }

    fn jump_if(&mut self, condition: u8, left: Register, right: Register, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.push(condition, left, right, 0, 0);
    }

    /// Reads the next byte, or ends with 0.
    fn read(&mut self) {
        self.push(LOAD_PACKET_BYTE, 0, READ, 0, 0);
        self.put_value(ADD_VALUE, READ, 1);
        self.put_value(SHIFT_LEFT, EARLIER, 8);
        self.put(MOVE, A, LAST);
        self.put_value(SHIFT_RIGHT, A, 56);
        self.put(OR, EARLIER, A);
        self.put_value(SHIFT_LEFT, LAST, 8);
        self.put(OR, LAST, BYTE);
    }

    fn jump_if_blank_line(&mut self, to: Label) {
        self.put(MOVE_LOW, A, LAST);
        self.jump_if_value(EQUAL, A, BLANK_LINE, to);
    }

    fn jump_if_blank(&mut self, to: Label) {
        for (register, blank) in [(A, b' '), (B, b'\t')] {
            self.put(MOVE, register, BYTE);
            self.put_value(DIFFERENCE_VALUE, register, blank.into());
        }
        self.put(MULTIPLY, A, B);
        self.jump_if_value(EQUAL, A, 0, to);
    }

    fn jump_if_name(&mut self, to: Label) {
        for (register, window, at) in [(A, EARLIER, 0), (B, LAST, 1)] {
            self.put_constant(register, LETTERS[at]);
            self.put(OR, register, window);
            self.put_constant(C, NAME[at]);
            self.put(DIFFERENCE, register, C);
        }
        self.put(OR, A, B);
        self.jump_if_value(EQUAL, A, 0, to);
    }

    fn finish(&mut self, result: i32) {
        self.put_value(SET, RESULT, result);
        self.push(EXIT, 0, 0, 0, 0);
    }

    /// Gives the jumps their distances.
    fn finished(mut self) -> Vec<u64> {
        for (from, to) in self.jumps {
            let Some((_, at)) = self.labels.iter().find(|(label, _)| *label == to) else {
                unreachable!("{to:?} is no label of the program")
            };
            // Counted from the next instruction.
            let distance = *at as i16 - from as i16 - 1;
            self.code[from] |= u64::from(distance.cast_unsigned()) << 16;
        }
        self.code
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX_BODY_BYTES: u32 = 5000;

    /// What the kernel's machine would return.
    fn run(packet: &[u8]) -> i32 {
        /// The packet's description, which only loads make sense of.
        const DESCRIPTION: u64 = 0xdead_0000;
        let code = program(MAX_BODY_BYTES);
        let (mut registers, mut frame) = ([0_u64; 11], [0_u64; 64]);
        registers[usize::from(A)] = DESCRIPTION;
        let mut at = 0;
        for _ in 0..100_000 {
            let [operation, pair, low, high, value @ ..] = code[at].to_le_bytes();
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            let offset = i16::from_le_bytes([low, high]);
            let value = i64::from(i32::from_le_bytes(value)).cast_unsigned();
            let (left, right) = (registers[to], registers[from]);
            let slot = || (64 + offset / 8) as usize;
            let mut jump = |condition: bool| {
                if condition {
                    at = at.strict_add_signed(offset.into());
                }
            };
            match operation {
                MOVE => registers[to] = right,
                ADD => registers[to] = left.wrapping_add(right),
                OR => registers[to] = left | right,
                MULTIPLY => registers[to] = left.wrapping_mul(right),
                DIFFERENCE => registers[to] = left ^ right,
                MOVE_LOW => registers[to] = u64::from(right as u32),
                SET => registers[to] = value,
                ADD_VALUE => registers[to] = left.wrapping_add(value),
                SUBTRACT => registers[to] = left.wrapping_sub(value),
                MULTIPLY_VALUE => registers[to] = left.wrapping_mul(value),
                DIFFERENCE_VALUE => registers[to] = left ^ value,
                SHIFT_LEFT => registers[to] = left << value,
                SHIFT_RIGHT => registers[to] = left >> value,
                ALWAYS => jump(true),
                EQUAL => jump(left == value),
                GREATER => jump(left > value),
                NOT_LESS => jump(left >= value),
                LESS => jump(left < value),
                GREATER_REGISTER => jump(left > right),
                LOAD_CONSTANT => {
                    at += 1;
                    registers[to] = u64::from(value as u32) | code[at] >> 32 << 32;
                }
                LOAD_PACKET_BYTE => {
                    let Some(byte) = packet.get(right as usize) else { return 0 };
                    registers[..6].fill(0xbad);
                    registers[usize::from(BYTE)] = (*byte).into();
                }
                STORE if to == usize::from(FRAME) => frame[slot()] = right,
                LOAD if from == usize::from(FRAME) => registers[to] = frame[slot()],
                LOAD_WORD if right == DESCRIPTION && offset == 0 => registers[to] = packet.len() as u64,
                EXIT => return registers[usize::from(RESULT)] as i32,
                _ => panic!("an instruction that is not there: {:#018x} at {at}", code[at]),
            }
            at += 1;
        }
        panic!("it does not end: {:?}", packet.escape_ascii().to_string())
    }

    fn head(fields: &str) -> String {
        format!("POST /append HTTP/1.1\r\nHost: a\r\n{fields}\r\n")
    }

    #[test]
    fn one_field_says_the_length() {
        for (fields, body) in [
            ("", 0),
            ("Content-Length: 0\r\n", 0),
            ("Content-Length: 7\r\n", 7),
            ("Content-Length:1024\r\nA: b\r\n", 1024),
            ("cONTENT-lENGTH:\t  5000 \t \r\n", 5000),
            ("Content-Length: 0000000000000000000000012\r\n", 12),
            ("X-Content-Length: 7\r\n", 0),
            ("X: Content-Length: 7\r\n", 0),
            ("Content-Lengths: 7\r\n", 0),
            ("Content\rLength: 7\r\n", 0),
            ("Content-Length\x1a 7\r\n", 0),
            ("*ontent-Length: 7\r\n", 0),
            ("Length: 8\r\nContent-Length: 7\r\nX-Content-Length: 9\r\n", 7),
        ] {
            let head = head(fields);
            assert_eq!(run(head.as_bytes()), head.len() as i32 + body, "{head:?}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_ends_the_connection() {
        for fields in [
            "Content-Length: 7\r\nContent-Length: 7\r\n",
            "Content-Length: 7\r\nA: b\r\ncontent-length: 8\r\n",
            "Content-Length:\r\n",
            "Content-Length: \r\n\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: +1\r\n",
            "Content-Length: 0x10\r\n",
            "Content-Length: 1 2\r\n",
            "Content-Length: 1, 1\r\n",
            "Content-Length: 1\n\r\n",
        ] {
            assert_eq!(run(head(fields).as_bytes()), MALFORMED, "{fields:?}");
        }
    }

    #[test]
    fn what_is_too_long_ends_the_connection() {
        for fields in ["Content-Length: 5001\r\n", "Content-Length: 18446744073709551617\r\n"] {
            assert_eq!(run(head(fields).as_bytes()), TOO_LONG, "{fields:?}");
        }
        let empty = head("A: \r\n").len();
        for before in ["", "Content-Length: 3\r\n"] {
            let room = MAX_HEAD_BYTES as usize - empty - before.len();
            let longest = head(&format!("{before}A: {}\r\n", "b".repeat(room)));
            let body = if before.is_empty() { 0 } else { 3 };
            assert_eq!(run(longest.as_bytes()), MAX_HEAD_BYTES as i32 + body);
            let longer = head(&format!("{before}A: {}\r\n", "b".repeat(room + 1)));
            assert_eq!(run(longer.as_bytes()), TOO_LONG);
            assert_eq!(run(&longer.as_bytes()[..MAX_HEAD_BYTES as usize - 1]), 0);
        }
        for blank in [" ", "0"] {
            let fields = format!("Content-Length:{}", blank.repeat(MAX_HEAD_BYTES as usize));
            assert_eq!(run(head(&fields).as_bytes()), TOO_LONG);
        }
        let fields = format!("Content-Length: 1{}", " ".repeat(MAX_HEAD_BYTES as usize));
        assert_eq!(run(head(&fields).as_bytes()), TOO_LONG);
    }

    #[test]
    fn a_request_that_comes_too_soon_ends_the_connection() {
        let request = head("Content-Length: 3\r\n") + "abc";
        assert_eq!(run(request.as_bytes()), request.len() as i32);
        assert_eq!(run((request + "P").as_bytes()), TOO_SOON);
    }

    proptest! {
        #[test]
        fn nothing_is_said_before_the_head_is_whole(
            before in prop::collection::vec("(A|Host|X-Content-Length|Content-Lengt|-length): [ -~]{0,20}", 0..4),
            name in "[Cc][Oo]ntent-[Ll]engt[Hh]:[ \t]{0,3}",
            body in 0_usize..=5000,
            after in prop::collection::vec("(A|Connection|X-Content-Length|Content-Length2): [ -~]{0,20}", 0..4),
        ) {
            let named = vec![format!("{name}{body}")];
            let fields: String = [before, named, after].concat().iter().map(|field| format!("{field}\r\n")).collect();
            let mut packet = head(&fields).into_bytes();
            for end in 0..packet.len() {
                prop_assert_eq!(run(&packet[..end]), 0);
            }
            let whole = packet.len() + body;
            for len in [packet.len(), packet.len() + body / 2, whole] {
                packet.resize(len, b'\n');
                prop_assert_eq!(run(&packet), whole as i32);
            }
        }
    }
}
