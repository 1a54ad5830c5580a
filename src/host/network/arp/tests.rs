use super::*;
use crate::host::network::testing::with_peer;

const HELD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
const FREE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[test]
fn a_packet_survives_the_wire() {
    let packet = Packet {
        operation: REQUEST,
        sender: Mac([2, 0, 0, 0, 0, 1]),
        sender_ip: Ipv4Addr::UNSPECIFIED,
        target: Mac([0; 6]),
        target_ip: HELD,
    };
    let mut frame = packet.frame();
    assert_eq!(frame.len(), FRAME);
    // What a link pads to its least length.
    frame.resize(60, 0);
    assert_eq!(Packet::parse(&frame), Some(packet));
}

#[test]
fn other_frames_are_not_taken_for_arp() {
    let good = Packet {
        operation: REPLY,
        sender: Mac([2, 0, 0, 0, 0, 1]),
        sender_ip: HELD,
        target: Mac([2, 0, 0, 0, 0, 2]),
        target_ip: FREE,
    }
    .frame();
    // Ethertype, hardware, protocol, their lengths, operation.
    for at in [12, 14, 16, 18, 19, 20] {
        let mut frame = good.clone();
        frame[at] ^= 0x40;
        assert_eq!(Packet::parse(&frame), None, "byte {at} of {frame:02x?}");
    }
    for length in 0..FRAME {
        assert_eq!(Packet::parse(&good[..length]), None, "{length} bytes");
    }
}

#[test]
fn a_mac_reads_as_people_write_it() {
    assert_eq!(Mac([0x02, 0, 0xab, 0x0c, 0xd, 0xff]).to_string(), "02:00:ab:0c:0d:ff");
}

#[test]
fn a_link_that_cannot_be_asked_says_why() {
    assert_eq!(Link::find("larder-none").unwrap(), Err(Mute::Absent));
    assert_eq!(Link::find("lo").unwrap(), Err(Mute::NoArp));
}

#[test]
fn who_holds_an_address_is_named_by_its_mac() {
    with_peer("holders", |peer| {
        peer.run("ip addr add 192.0.2.9/24 dev peer");
        let link = Link::find("eth0").unwrap().unwrap();
        assert_eq!(link.holders(&[HELD], PROBES).unwrap(), [(HELD, Mac(peer.mac))].into());
        assert_eq!(link.holders(&[FREE], PROBES).unwrap(), [].into());
        assert_eq!(link.holders(&[FREE, HELD], PROBES).unwrap(), [(HELD, Mac(peer.mac))].into());
    });
}

#[test]
fn an_address_of_our_own_is_nobody_elses() {
    with_peer("own", |peer| {
        peer.here("ip addr add 192.0.2.1/24 dev eth0");
        let link = Link::find("eth0").unwrap().unwrap();
        assert_eq!(link.holders(&[Ipv4Addr::new(192, 0, 2, 1)], PROBES).unwrap(), [].into());
    });
}

#[test]
fn whoever_asks_for_the_same_address_meanwhile_is_a_holder_to_be() {
    with_peer("both", |peer| {
        let other = peer.thread(|| Link::find("peer").unwrap().unwrap().holders(&[FREE], PROBES).unwrap());
        let ours = Link::find("eth0").unwrap().unwrap().holders(&[FREE], PROBES).unwrap();
        let theirs = other.join().unwrap();
        assert!(!ours.is_empty() || !theirs.is_empty(), "both would take it: {ours:?}, {theirs:?}");
    });
}

#[test]
fn a_gateway_answers_from_another_subnet_too() {
    with_peer("gateway", |peer| {
        peer.run("ip addr add 198.51.100.1/24 dev peer");
        peer.here("ip addr add 192.0.2.1/24 dev eth0");
        let link = Link::find("eth0").unwrap().unwrap();
        let gateway = Ipv4Addr::new(198, 51, 100, 1);
        assert_eq!(link.ask(None, gateway, soon()).unwrap(), Some(Mac(peer.mac)));
        assert_eq!(
            link.ask(Some(Ipv4Addr::new(192, 0, 2, 1)), gateway, soon()).unwrap(),
            Some(Mac(peer.mac))
        );
        let silent = Instant::now() + 2 * ASK_INTERVAL;
        assert_eq!(link.ask(None, FREE, silent).unwrap(), None);
    });
}

#[test]
fn a_link_that_is_down_cannot_be_asked() {
    with_peer("down", |peer| {
        let link = Link::find("eth0").unwrap().unwrap();
        peer.here("ip link set eth0 down");
        assert_eq!(Link::find("eth0").unwrap(), Err(Mute::Down));
        let error = link.holders(&[HELD], PROBES).unwrap_err();
        assert!(format!("{error:#}").contains("eth0"), "{error:#}");
    });
}
