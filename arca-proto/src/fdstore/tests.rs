// SPDX-License-Identifier: Apache-2.0
//! Both sides of the descriptor store against each other, and against a child that dies.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use serde_json::json;

use super::*;

/// A client as arca-tapfwd has it, and the thread that arca-init would run.
fn run(store: &Arc<Store>) -> (Client, thread::JoinHandle<Result<(), FdStoreError>>) {
    let session = store.session().unwrap();
    let client = Client::new(session.child.try_clone().unwrap()).unwrap();
    (client, thread::spawn(move || session.serve()))
}

#[test]
fn a_second_run_gets_what_the_first_put_and_not_what_it_removed() {
    let store = Arc::new(Store::default());
    let (first, thread) = run(&store);
    assert!(first.restore().unwrap().is_empty());
    let (here, there) = UnixStream::pair().unwrap();
    first.put("link-1", json!({"link": 1}), &[here.as_fd(), there.as_fd()]).unwrap();
    first.put("link-2", json!({"link": 2}), &[here.as_fd()]).unwrap();
    first.put("link-1", json!({"link": 1, "mtu": 1442}), &[here.as_fd()]).unwrap();
    first.remove("link-2").unwrap();
    first.remove("never was").unwrap();
    drop(first);
    thread.join().unwrap().unwrap();
    assert_eq!(store.names(), ["link-1"]);

    let (second, thread) = run(&store);
    let entries = second.restore().unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].state, json!({"link": 1, "mtu": 1442}));
    // It is the same open socket, not merely a valid number.
    let mut kept = UnixStream::from(entries.into_iter().next().unwrap().descriptors.pop().unwrap());
    drop(here);
    kept.write_all(b"same").unwrap();
    let mut text = [0; 4];
    (&there).read_exact(&mut text).unwrap();
    assert_eq!(&text, b"same");
    drop(second);
    thread.join().unwrap().unwrap();
}

#[test]
fn a_listener_accepts_what_was_dialled_while_nobody_ran() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("20001");
    let store = Arc::new(Store::default());
    let (first, thread) = run(&store);
    first.restore().unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    first.put("link-1", Value::Null, &[listener.as_fd()]).unwrap();
    drop((first, listener));
    thread.join().unwrap().unwrap();

    let mut dialled = UnixStream::connect(&path).expect("the kept listener takes the connection");
    dialled.write_all(b"hello").unwrap();

    let (second, thread) = run(&store);
    let descriptor = second.restore().unwrap().pop().unwrap().descriptors.pop().unwrap();
    let (mut accepted, _) = UnixListener::from(descriptor).accept().unwrap();
    let mut text = [0; 5];
    accepted.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
    drop(second);
    thread.join().unwrap().unwrap();
}

#[test]
fn what_is_put_just_before_death_is_kept_even_with_the_replay_unread() {
    let store = Arc::new(Store::default());
    let file = tempfile::tempfile().unwrap();
    for n in 0..50 {
        let (client, thread) = run(&store);
        // No restore: the entries sent to this client are still queued when it goes, which resets the socket.
        client.put(&format!("link-{n}"), json!(n), &[file.as_fd()]).unwrap();
        drop(client);
        thread.join().unwrap().unwrap();
    }
    assert_eq!(store.names().len(), 50);
}

#[test]
fn a_spawned_child_inherits_its_end_and_only_the_number_named() {
    let store = Arc::new(Store::default());
    let session = store.session().unwrap();
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(format!("test -e /proc/self/fd/${ENV} && readlink /proc/self/fd/${ENV}"));
    session.pass_to(&mut command);
    let child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let thread = thread::spawn(move || session.serve());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("socket:"), "{output:?}");
    // The child and its copy are gone, so the session ends by itself.
    thread.join().unwrap().unwrap();
}

#[test]
fn too_many_descriptors_and_too_much_state_are_refused_before_sending() {
    let store = Arc::new(Store::default());
    let (client, thread) = run(&store);
    let file = tempfile::tempfile().unwrap();
    let many = vec![file.as_fd(); MAX_DESCRIPTORS + 1];
    assert!(matches!(client.put("a", Value::Null, &many), Err(FdStoreError::TooLarge { descriptors: 9, .. })));
    let large = Value::String("x".repeat(MAX_MESSAGE));
    assert!(matches!(client.put("a", large, &[]), Err(FdStoreError::TooLarge { .. })));
    drop(client);
    thread.join().unwrap().unwrap();
    assert!(store.names().is_empty());
}

#[test]
fn a_malformed_message_is_reported_and_the_next_one_still_counts() {
    let store = Arc::new(Store::default());
    let (client, thread) = run(&store);
    nix::sys::socket::send(client.lock().as_raw_fd(), b"{\"op\":\"grow\"}", MsgFlags::empty()).unwrap();
    client.put("a", Value::Null, &[]).unwrap();
    drop(client);
    thread.join().unwrap().unwrap();
    assert_eq!(store.names(), ["a"]);
}

#[test]
fn a_removed_descriptor_is_closed_when_remove_returns() {
    let store = Arc::new(Store::default());
    let (client, thread) = run(&store);
    client.restore().unwrap();
    let (here, mut there) = UnixStream::pair().unwrap();
    client.put("link-1", Value::Null, &[here.as_fd()]).unwrap();
    drop(here);
    client.remove("link-1").unwrap();
    there.set_nonblocking(true).unwrap();
    // End of input, not "nothing yet": nobody holds the other end.
    assert_eq!(there.read(&mut [0; 1]).unwrap(), 0);
    drop(client);
    thread.join().unwrap().unwrap();
}

#[test]
fn a_store_that_is_gone_is_an_error_not_a_hang() {
    let store = Arc::new(Store::default());
    let session = store.session().unwrap();
    let client = Client::new(session.child.try_clone().unwrap()).unwrap();
    drop(session);
    assert!(matches!(client.restore(), Err(FdStoreError::Closed)));
    assert!(client.put("a", Value::Null, &[]).is_err());
}
