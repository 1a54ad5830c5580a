//! A network of two: this thread in a namespace of its own with `eth0`, and a peer at the other end of the cable.

#![allow(clippy::disallowed_methods, reason = "a test may")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

pub struct Peer {
    process: Child,
    /// Of its end, `peer`.
    pub mac: [u8; 6],
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The namespace goes with its last process, and both ends of the cable with it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Peer {
    /// Runs a shell command on the other side.
    pub fn run(&self, command: &str) -> String {
        shell(&format!("nsenter -t {} -n sh -ec '{command}'", self.process.id()))
    }

    /// Runs a shell command on this side.
    #[expect(clippy::unused_self, reason = "there is no side without a peer")]
    pub fn here(&self, command: &str) -> String {
        shell(command)
    }

    /// Until both ends say that the link is up: the kernel tells with a delay.
    pub fn until_up(&self) {
        let up = |text: String| text.contains("state UP");
        while !up(self.here("ip link show eth0")) || !up(self.run("ip link show peer")) {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Does `work` on the other side, at the same time.
    pub fn thread<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.process.id())).unwrap();
        thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        })
    }
}

fn shell(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Past the test harness, which shows what a passing test prints to nobody.
pub fn not_run(why: &str) {
    std::io::stderr().write_all(format!("NOT RUN: {why}\n").as_bytes()).unwrap();
}

/// Runs `test` in such a network; where this process may not make one, says loudly that it did not.
pub fn with_peer(name: &str, test: impl FnOnce(&Peer) + Send) {
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                return not_run(&format!("{name}: make a network namespace: {error}: run the tests as root"));
            }
            let mut process = Command::new("unshare")
                .args(["-n", "sh", "-c", "echo; exec sleep 120"])
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            // Once it has spoken it is where it shall be.
            BufReader::new(process.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
            let peer = Peer { mac: [2, 0, 0, 0, 0, 9], process };
            let pid = peer.process.id();
            peer.here(&format!(
                "ip link set lo up; \
                 ip link add eth0 type veth peer name peer address 02:00:00:00:00:09 netns {pid}; \
                 ip link set eth0 up"
            ));
            peer.run("ip link set lo up; ip link set peer up");
            peer.until_up();
            test(&peer);
        });
        if let Err(panic) = run.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
