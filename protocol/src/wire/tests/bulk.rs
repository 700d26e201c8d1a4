//! Bulk data: compression, maximum rate, further connections.

use super::*;

/// Introduces two agents of this version to each other.
async fn introduced() -> (Connection, Connection) {
    let (mut a, mut b) = talking().await;
    let us = Introduction::of_this_agent("a", "1");
    let (there, here) = tokio::join!(a.introduce(&us, SECOND), b.answer_introduction(&us, SECOND));
    there.and(here).unwrap();
    (a, b)
}

fn bulk(compression: Compression) -> BulkOptions {
    BulkOptions { compression, ..BulkOptions::default() }
}

/// Sends bytes that compress well, and returns how many bytes went over the wire.
async fn send_zeros(a: &mut Connection, b: &mut Connection, options: BulkOptions) -> u64 {
    a.set_bulk(options);
    let before = a.sent();
    let message = Message::LogData(crate::message::Data(vec![0; PIECE]));
    let (sent, came) = tokio::join!(a.send_bulk(&message), b.receive(SECOND));
    sent.unwrap();
    let Message::LogData(data) = came.unwrap() else { panic!("another message") };
    assert_eq!(data.0, vec![0; PIECE]);
    a.sent() - before
}

#[tokio::test]
async fn bulk_data_is_compressed_if_both_agents_want_it() {
    let (mut a, mut b) = introduced().await;
    assert!(send_zeros(&mut a, &mut b, bulk(Compression::None)).await > PIECE as u64);
    assert!(send_zeros(&mut a, &mut b, bulk(Compression::Zstd)).await < 1000);
    // Nothing waits for this link.
    assert!(send_zeros(&mut a, &mut b, bulk(Compression::Auto)).await > PIECE as u64);

    let (mut a, mut b) = talking().await;
    let without = send_zeros(&mut a, &mut b, bulk(Compression::Zstd)).await;
    assert!(without > PIECE as u64, "an agent that has not named the capability");
}

#[tokio::test]
async fn bulk_data_is_compressed_while_the_link_is_behind() {
    let (mut a, mut b) = introduced().await;
    let pieces = 300;
    let message = Message::LogData(crate::message::Data(vec![0; PIECE]));
    let slow_reader = async {
        tokio::time::sleep(SECOND / 2).await;
        for _ in 0..pieces {
            b.receive(10 * SECOND).await.unwrap();
        }
    };
    let sender = async {
        for _ in 0..pieces {
            a.send_bulk(&message).await.unwrap();
        }
        a.sent()
    };
    let sent = tokio::join!(sender, slow_reader).0;
    assert!(sent < pieces * PIECE as u64 / 2, "{sent} bytes");
    assert!(sent > PIECE as u64, "the first ones go as they are");
}

#[tokio::test]
async fn bulk_data_goes_no_faster_than_allowed() {
    let (mut a, mut b) = introduced().await;
    let bandwidth = std::num::NonZeroU64::new(4 * PIECE as u64);
    let options = BulkOptions { bandwidth, compression: Compression::None };
    a.set_bulk(options);
    let message = Message::LogData(crate::message::Data(vec![0; PIECE]));
    let began = std::time::Instant::now();
    for _ in 0..3 {
        let (sent, came) = tokio::join!(a.send_bulk(&message), b.receive(SECOND));
        sent.and(came.map(drop)).unwrap();
    }
    // The first one goes at once, and each other one waits for the one before it.
    assert!(began.elapsed() >= SECOND / 2);
}

/// Two agents whose conversation has so many further connections.
async fn with_streams(count: usize, options: BulkOptions) -> (Connection, Connection) {
    let (mut a, mut b) = introduced().await;
    a.set_bulk(options);
    let (sender, offered) = tokio::sync::mpsc::channel(1);
    b.accept_streams(offered);
    let mut streams = Vec::new();
    for _ in 0..count {
        let (here, there) = introduced().await;
        streams.push(here);
        let sender = sender.clone();
        tokio::spawn(async move { sender.send(there).await });
    }
    a.use_streams(streams);
    (a, b)
}

fn log(bytes: Vec<u8>) -> Message {
    Message::LogData(crate::message::Data(bytes))
}

#[tokio::test]
async fn bulk_data_over_several_connections_arrives_in_order() {
    for compression in [Compression::None, Compression::Zstd] {
        let (mut a, mut b) = with_streams(3, bulk(compression)).await;
        let count = 200_u32;
        let sender = async {
            for number in 0..count {
                let size = 1 + (number as usize * 7919) % PIECE;
                let mut bytes = vec![0; size];
                bytes.extend(number.to_be_bytes());
                a.send_bulk(&log(bytes)).await.unwrap();
                if number % 10 == 9 {
                    a.send(&Message::Measure(crate::message::Data(number.to_be_bytes().into())))
                        .await
                        .unwrap();
                }
            }
        };
        let receiver = async {
            for number in 0..count {
                let Ok(Message::LogData(data)) = b.receive(10 * SECOND).await else {
                    panic!("message {number} did not come")
                };
                assert!(data.0.ends_with(&number.to_be_bytes()), "message {number}");
                if number % 10 == 9 {
                    let Ok(Message::Measure(data)) = b.receive(10 * SECOND).await else {
                        panic!("the message after {number} did not come in its turn")
                    };
                    assert_eq!(data.0, number.to_be_bytes());
                }
            }
        };
        tokio::join!(sender, receiver);
    }
}

#[tokio::test]
async fn a_slow_receiver_gets_everything_over_several_connections() {
    let (mut a, mut b) = with_streams(4, BulkOptions::default()).await;
    let count = 300;
    let sender = async {
        for _ in 0..count {
            a.send_bulk(&log(vec![1; PIECE])).await.unwrap();
        }
    };
    let receiver = async {
        tokio::time::sleep(SECOND).await;
        for _ in 0..count {
            b.receive(10 * SECOND).await.unwrap();
        }
    };
    tokio::join!(sender, receiver);
}

#[tokio::test]
async fn a_further_connection_that_breaks_ends_the_conversation() {
    let (mut a, mut b) = introduced().await;
    let (sender, offered) = tokio::sync::mpsc::channel(1);
    b.accept_streams(offered);
    let (here, there) = introduced().await;
    a.use_streams(vec![here]);
    drop((there, sender));
    let failed = async {
        for _ in 0..100 {
            a.send_bulk(&log(vec![1; PIECE])).await?;
        }
        Ok::<_, Error>(())
    };
    assert!(failed.await.is_err());
}

#[tokio::test]
async fn hostile_numbers_are_refused() {
    // Nothing was attached.
    let (mut a, mut b) = introduced().await;
    a.send(&Message::Elsewhere(0)).await.unwrap();
    assert!(matches!(b.receive(SECOND).await, Err(Error::Unexpected { .. })));
    // Out of turn.
    let (mut a, mut b) = with_streams(1, BulkOptions::default()).await;
    a.send(&Message::Elsewhere(1)).await.unwrap();
    assert!(matches!(b.receive(SECOND).await, Err(Error::Unexpected { .. })));
    // Another message in place of a numbered one.
    let (mut a, mut b) = introduced().await;
    let (sender, offered) = tokio::sync::mpsc::channel(1);
    b.accept_streams(offered);
    let (mut here, there) = introduced().await;
    sender.send(there).await.unwrap();
    here.send(&Message::Measured(())).await.unwrap();
    a.send(&Message::Elsewhere(0)).await.unwrap();
    assert!(matches!(b.receive(SECOND).await, Err(Error::Unexpected { .. })));
}

#[tokio::test]
async fn a_receiver_does_not_wait_for_what_a_broken_connection_had_to_bring() {
    let (mut a, mut b) = introduced().await;
    let (sender, offered) = tokio::sync::mpsc::channel(2);
    b.accept_streams(offered);
    let (broken, there) = introduced().await;
    let (_idle, also_there) = introduced().await;
    sender.send(there).await.unwrap();
    sender.send(also_there).await.unwrap();
    a.send(&Message::Elsewhere(0)).await.unwrap();
    let breaks = async {
        tokio::time::sleep(SECOND / 10).await;
        drop(broken);
    };
    let began = std::time::Instant::now();
    let (heard, ()) = tokio::join!(b.receive(20 * SECOND), breaks);
    assert!(matches!(heard, Err(Error::Closed { .. })), "{heard:?}");
    assert!(began.elapsed() < 10 * SECOND);
}
