//! Clients that follow the log, and clients that want parts of records.

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::wire::SERVER_V4;
use lab::{Curl, Lab, Pmlog, noise, wire};
use serde_json::Value;

use crate::cores::one_for_each_shard;
use crate::{
    Over, cable, connect, health_of, options, over_each_transport, post, serve, two_cpus, wait_until,
};

over_each_transport! {
    a_hundred_followers_get_each_record_in_order,
    a_follower_goes_on_where_a_server_was_killed,
    who_is_too_slow_for_a_trim_is_told_and_holds_up_nobody,
    both_shards_are_followed_by_either_core,
    curl_follows_and_takes_parts,
}

const V4: IpAddr = IpAddr::V4(SERVER_V4);
/// With a server that was killed: its own stack resets nothing.
const PATIENCE: Duration = Duration::from_secs(3);

/// One client's feed, as it comes.
struct Feed {
    stream: BufReader<TcpStream>,
    /// Bytes of the current chunk that are to come.
    left: usize,
    is_ended: bool,
}

impl Feed {
    fn open(query: &str) -> Result<Self> {
        let mut connection = connect()?;
        connection.set_patience(Duration::from_secs(60))?;
        connection.send_get(&format!("/records?{query}"))?;
        let mut stream = BufReader::new(connection.stream().try_clone()?);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(stream.read_line(&mut head)? > 0, "no head: {head:?}");
        }
        ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
        Ok(Self { stream, left: 0, is_ended: false })
    }

    fn byte(&mut self) -> Result<Option<u8>> {
        let mut byte = [0];
        Ok(if self.read(&mut byte)? == 1 { Some(byte[0]) } else { None })
    }

    /// The next line; none at the end.
    fn line(&mut self) -> Result<Option<Value>> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                Some(b'\n') => return Ok(Some(serde_json::from_slice(&line)?)),
                Some(byte) => line.push(byte),
                None if line.is_empty() => return Ok(None),
                None => bail!("half a line: {:?}", String::from_utf8_lossy(&line)),
            }
        }
    }

    /// The next record's line; what is said of the log is passed over.
    fn record(&mut self) -> Result<Value> {
        loop {
            let line = self.line()?.context("the feed has ended")?;
            ensure!(line["error"].is_null(), "{line}");
            if line["seq"].is_u64() {
                return Ok(line);
            }
        }
    }

    /// The next record's line and bytes.
    fn content(&mut self) -> Result<(Value, Vec<u8>)> {
        let line = self.record()?;
        let mut bytes = vec![0; line["length"].as_u64().context("no length")? as usize + 1];
        self.read_exact(&mut bytes)?;
        ensure!(bytes.pop() == Some(b'\n'), "no line feed behind {line}");
        Ok((line, bytes))
    }
}

impl Read for Feed {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 && !self.is_ended {
            let mut size = String::new();
            while size.trim().is_empty() {
                if self.stream.read_line(&mut size)? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            self.left = usize::from_str_radix(size.trim(), 16).map_err(std::io::Error::other)?;
            self.is_ended = self.left == 0;
        }
        let most = into.len().min(self.left);
        let read = self.stream.read(&mut into[..most])?;
        self.left -= read;
        Ok(read)
    }
}

fn a_hundred_followers_get_each_record_in_order(lab: &Lab, over: Over) -> Result<()> {
    let server = serve(lab, over, "64MiB")?;
    let mut writer = connect()?;
    let mut expected = vec![writer.append(b"before")?.seq()?];
    let mut feeds = Vec::new();
    for number in 0..100 {
        feeds.push(Feed::open(if number % 2 == 0 { "follow=1" } else { "follow=1&content=1" })?);
    }
    ensure!(health_of(&server, "followers")? == 100, "{}", server.health()?);
    for seed in 0..50 {
        expected.push(writer.append(&noise(seed, seed as usize * 100))?.seq()?);
    }
    for (number, feed) in feeds.iter_mut().enumerate() {
        for (place, seq) in expected.iter().enumerate() {
            let line = if number % 2 == 0 {
                feed.record()?
            } else {
                let (line, bytes) = feed.content()?;
                let seed = place.wrapping_sub(1) as u64;
                ensure!(place == 0 || bytes == noise(seed, seed as usize * 100), "record {seq} differs");
                line
            };
            ensure!(line["seq"].as_u64() == Some(*seq), "follower {number}: {line} instead of {seq}");
        }
    }
    drop(feeds);
    // They are found out to be gone, and the server ends in order while others follow.
    wait_until("nobody follows", || Ok(health_of(&server, "followers")? == 0))?;
    let mut last = Feed::open("follow=1&from=next")?;
    ensure!(server.interrupt()?.success(), "no clean end");
    let line = last.line()?.context("no last line")?;
    ensure!(line["error"].as_str().is_some_and(|error| error.contains("the server ends")), "{line}");
    ensure!(last.line()?.is_none(), "a line behind the last one");
    Ok(())
}

fn a_follower_goes_on_where_a_server_was_killed(lab: &Lab, over: Over) -> Result<()> {
    cable(lab, over)?;
    let options = options(lab, over, "64MiB")?;
    let (mut followed, mut acknowledged, mut next) = (Vec::new(), Vec::new(), 0);
    for round in 0..3 {
        let server = options.start()?;
        std::thread::scope(|scope| -> Result<()> {
            let writer = scope.spawn(|| {
                let mut acknowledged = Vec::new();
                let Ok(mut connection) = connect() else { return acknowledged };
                connection.set_patience(PATIENCE).expect("a good duration");
                // Ends with the connection, when the server is gone.
                for seed in 0.. {
                    match connection.append(&noise(seed, 700)).and_then(|reply| reply.seq()) {
                        Ok(seq) => acknowledged.push(seq),
                        Err(_) => break,
                    }
                }
                acknowledged
            });
            let mut feed = Feed::open(&format!("follow=1&content=1&from={next}"))?;
            for _ in 0..200 {
                let (line, _) = feed.content()?;
                followed.push(line["seq"].as_u64().context("no number")?);
                next = line["next"].as_u64().context("no next")?;
            }
            server.kill()?;
            // What was on the wire is followed as well; the end is in the middle of something, or is silence.
            feed.stream.get_ref().set_read_timeout(Some(PATIENCE))?;
            while let Ok((line, _)) = feed.content() {
                followed.push(line["seq"].as_u64().context("no number")?);
                next = line["next"].as_u64().context("no next")?;
            }
            acknowledged.extend(writer.join().expect("the writer goes on to its end"));
            ensure!(followed.len() >= 200 * (round + 1), "too little was followed");
            Ok(())
        })?;
    }
    let server = options.start()?;
    let mut feed = Feed::open(&format!("content=1&from={next}"))?;
    while let Some(line) = feed.line()? {
        if let Some(seq) = line["seq"].as_u64() {
            followed.push(seq);
            let length = line["length"].as_u64().context("no length")?;
            std::io::copy(&mut feed.by_ref().take(length + 1), &mut std::io::sink())?;
        }
    }
    // No record that was acknowledged is missing, none was shown twice, and none is gone that was shown.
    ensure!(followed.windows(2).all(|pair| pair[0] < pair[1]), "not in order, or twice");
    ensure!(
        acknowledged.iter().all(|seq| followed.binary_search(seq).is_ok()),
        "an acknowledged one is missing"
    );
    ensure!(health_of(&server, "records")? == followed.len() as u64, "{} followed", followed.len());
    Ok(())
}

fn who_is_too_slow_for_a_trim_is_told_and_holds_up_nobody(lab: &Lab, over: Over) -> Result<()> {
    let server = serve(lab, over, "64MiB")?;
    let free = health_of(&server, "free_buffers")?;
    let mut writer = connect()?;
    let mut slow = Feed::open("follow=1&content=1")?;
    let mut other = Feed::open("follow=1")?;
    // More than any socket between the two takes.
    let mut seqs = Vec::new();
    for seed in 0..80 {
        seqs.push(writer.append(&noise(seed, 256 << 10))?.seq()?);
        ensure!(other.record()?["seq"].as_u64() == seqs.last().copied(), "the other is held up");
        if seed % 10 == 9 {
            let last = seqs[seqs.len() - 1];
            writer.send(format!("DELETE /records?before={last} HTTP/1.1\r\nHost: lab\r\n\r\n").as_bytes())?;
            ensure!(writer.reply()?.status == 200, "no trim");
        }
    }
    // The record that is being sent is held, and what is under way.
    wait_until("what was trimmed is free", || {
        Ok(health_of(&server, "free_buffers")? + (40 << 20) / 1448 > free)
    })?;
    let mut count = 0;
    let last = loop {
        let line = slow.line()?.context("the feed has ended without a word")?;
        if line["seq"].is_null() {
            break line;
        }
        ensure!(line["seq"].as_u64() == Some(seqs[count]), "a gap without a word: {line}");
        let mut bytes = vec![0; (256 << 10) + 1];
        slow.read_exact(&mut bytes)?;
        ensure!(bytes[..256 << 10] == noise(count as u64, 256 << 10), "record {count} differs");
        count += 1;
    };
    ensure!(last["error"].as_str().is_some_and(|error| error.contains("were trimmed")), "{last}");
    ensure!(last["head"].as_u64() == seqs.last().copied() && slow.line()?.is_none(), "{last}");
    Ok(())
}

fn both_shards_are_followed_by_either_core(lab: &Lab, over: Over) -> Result<()> {
    cable(lab, over)?;
    let _server = options(lab, over, "128MiB")?.option("--cores", &two_cpus()?).start()?;
    let mut writers = one_for_each_shard()?;
    let mut feeds = Vec::new();
    // Some of them come to the core that has the shard, and some to the other one.
    for number in 0..16 {
        let query = format!("shard={}&follow=1&content=1&from=next", number % 2);
        feeds.push((number % 2, Feed::open(&query)?));
    }
    let mut expected = [Vec::new(), Vec::new()];
    for seed in 0..20 {
        for (shard, writer) in writers.iter_mut().enumerate() {
            let bytes = noise(seed * 2 + shard as u64, [20, 1000, 50_000][seed as usize % 3]);
            expected[shard].push((writer.append(&bytes)?.seq()?, bytes));
        }
    }
    for (shard, feed) in &mut feeds {
        for (seq, bytes) in &expected[*shard] {
            let (line, content) = feed.content()?;
            ensure!(line["shard"] == *shard && line["seq"] == *seq, "shard {shard}: {line}, not {seq}");
            ensure!(content == *bytes, "record {shard}-{seq} differs");
        }
    }
    Ok(())
}

fn curl_follows_and_takes_parts(lab: &Lab, over: Over) -> Result<()> {
    let _server = serve(lab, over, "64MiB")?;
    let body = noise(1, 1_000_000);
    let seq = post(V4, lab, "body", &body)?;
    let url = wire::url(V4, &format!("/records/{seq}"));
    for (range, part) in
        [("0-9", &body[..10]), ("500000-", &body[500_000..]), ("-7", &body[999_993..]), ("9-8", &body[..])]
    {
        let got = Curl::get(&url).argument("--header").argument(format!("Range: bytes={range}")).reply()?;
        ensure!(got.0 == if part.len() == body.len() { 200 } else { 206 }, "{range}: status {}", got.0);
        ensure!(got.1 == part, "{range}: {} bytes", got.1.len());
    }
    let refused = Curl::get(&url).argument("--range").argument("1000000-").reply()?;
    ensure!(refused.0 == 416, "status {}", refused.0);
    // A download that broke off.
    let file = lab.write("part", &body[..123_456])?;
    let resumed = lab::run("curl", ["-sS", "-f", "-C", "-", "-o", &file.display().to_string(), &url]);
    resumed.context("curl does not resume")?;
    ensure!(std::fs::read(&file)? == body, "not resumed right");

    let url = Pmlog::url("/records?follow=1&from=next");
    let mut curl = Command::new("curl").args(["-sS", "-N", &url]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(curl.stdout.take().context("no output")?).lines();
    let mut writer = connect()?;
    // It may not have asked yet when the first ones come.
    let seen = std::thread::scope(|scope| -> Result<Value> {
        let first = scope.spawn(move || lines.next());
        while !first.is_finished() {
            writer.append(b"news")?.seq()?;
            std::thread::sleep(Duration::from_millis(10));
        }
        let line = first.join().expect("curl is read").context("curl has ended")??;
        Ok(serde_json::from_str(&line)?)
    });
    curl.kill()?;
    curl.wait()?;
    let seen = seen?;
    ensure!(seen["length"] == 4 && seen["seq"].as_u64() > Some(seq), "{seen}");
    Ok(())
}
