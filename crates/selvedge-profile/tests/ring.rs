//! The ring of a thread: what one side publishes the other reads, in order, whole, and never more than fits.

use selvedge_profile::SessionMemory;
use selvedge_sample::record::{Head, Kind};
use selvedge_sample::region::{RING_WORDS, Region};
use selvedge_sample::ring::{consume, reserve};

fn region() -> &'static Region {
    SessionMemory::private().unwrap().region
}

fn publish(region: &Region, index: u32, len: usize, tag: u64) -> bool {
    let Some(mut place) = reserve(region, index, len) else {
        return false;
    };
    let words = place.words();
    words[0] = Head {
        len,
        kind: Kind::Stack,
        end: 1,
    }
    .to_word();
    words[1..].fill(tag);
    place.publish(len);
    true
}

#[test]
fn records_come_out_in_order_and_whole_over_many_wraps() {
    let region = region();
    let (mut sent, mut received) = (0_u64, 0_u64);
    for round in 0..2000_usize {
        for extra in 0..7 {
            assert!(publish(
                region,
                3,
                2 + (round * 31 + extra * 17) % 500,
                sent
            ));
            sent += 1;
        }
        consume(region, 3, |head, words| {
            assert_eq!(head.len, words.len());
            assert!(words[1..].iter().all(|&word| word == received));
            received += 1;
        })
        .unwrap();
    }
    assert_eq!(sent, received);
}

#[test]
fn full_ring_refuses_and_what_is_in_it_stays() {
    let region = region();
    let mut sent = 0;
    while publish(region, 0, 500, sent) {
        sent += 1;
    }
    assert!(sent as usize >= RING_WORDS / 500 - 1);
    let mut received = 0;
    consume(region, 0, |_, _| received += 1).unwrap();
    assert_eq!(sent, received);
    assert!(publish(region, 0, 500, 0), "there is room again");
}

#[test]
fn reservation_that_is_dropped_has_not_happened() {
    let region = region();
    for _ in 0..100 {
        assert!(reserve(region, 1, 900).is_some());
    }
    assert_eq!(
        consume(region, 1, |_, _| panic!("nothing was published")),
        Ok(0)
    );
}

#[test]
fn words_that_are_no_record_are_dropped_and_counted() {
    let region = region();
    let mut place = reserve(region, 2, 10).unwrap();
    place.words().fill(u64::MAX);
    place.publish(10);
    assert_eq!(
        consume(region, 2, |_, _| panic!("that is no record")),
        Err(10)
    );
    assert!(publish(region, 2, 10, 1));
    assert_eq!(consume(region, 2, |_, _| {}), Ok(1));
}

#[test]
fn one_thread_writes_while_another_reads() {
    let region = region();
    const RECORDS: u64 = 200_000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut tag = 0;
            while tag < RECORDS {
                if publish(region, 4, 2 + (tag % 60) as usize, tag) {
                    tag += 1;
                } else {
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < RECORDS {
            let taken = consume(region, 4, |_, words| {
                assert!(words[1..].iter().all(|&word| word == next));
                next += 1;
            });
            if taken.unwrap() == 0 {
                std::thread::yield_now();
            }
        }
    });
}
