// SPDX-License-Identifier: Apache-2.0
//! Good requests survive the round trip; bad ones are refused by the field that is bad.

use proptest::prelude::*;

use super::*;

fn good() -> AttachNetworkRequest {
    AttachNetworkRequest {
        link: 1,
        interface: "eth0".into(),
        mac: "02:42:ac:12:00:02".into(),
        mtu: 1442,
        addresses: vec!["172.18.0.2/16".into(), "fd00:18::2/64".into()],
        gateway_v4: "172.18.0.1".into(),
        gateway_v6: "fd00:18::1".into(),
        confirm_dhcp: true,
        timeout_ms: 0,
        cable: false,
    }
}

fn refused(change: impl FnOnce(&mut AttachNetworkRequest)) -> InvalidSettings {
    let mut request = good();
    change(&mut request);
    Settings::try_from(&request).expect_err("the request is bad")
}

#[test]
fn a_good_request_survives_the_round_trip() {
    let settings = Settings::try_from(&good()).unwrap();
    assert_eq!(settings.confirm, Some(Ipv4Addr::new(172, 18, 0, 2)));
    assert!(settings.has_v6());
    assert_eq!(settings.to_request(), good());
}

#[test]
fn each_bad_field_is_named() {
    use InvalidSettings as E;
    assert!(matches!(refused(|r| r.link = 0), E::Link(_)));
    for name in ["", "lo", "all", "..", "eth/0", "eth 0", "abcdefghijklmnop", "eth0\0"] {
        assert!(matches!(refused(|r| r.interface = name.into()), E::Interface(_)), "{name}");
    }
    for mac in ["", "02:42", "01:00:00:00:00:01", "00:00:00:00:00:00", "02:42:ac:12:00:02:03", "02:42:ac:12:00:+2"] {
        assert!(matches!(refused(|r| r.mac = mac.into()), E::Mac(_)), "{mac}");
    }
    assert_eq!(refused(|r| r.mtu = 67), E::Mtu(67));
    assert_eq!(refused(|r| r.mtu = 65_536), E::Mtu(65_536));
    assert_eq!(refused(|r| r.mtu = 1279), E::MtuForV6(1279));
    for address in
        ["172.18.0.2", "172.18.0.2/33", "172.18.0.2/0", "0.0.0.0/8", "127.0.0.1/8", "224.0.0.1/4", "x/8", "::1/128"]
    {
        assert!(matches!(refused(|r| r.addresses = vec![address.into()]), E::Address(_)), "{address}");
    }
    assert!(matches!(refused(|r| r.addresses.push("172.18.0.2/24".into())), E::Duplicate(_)));
    assert!(matches!(refused(|r| r.gateway_v4 = "fd00::1".into()), E::Gateway(..)));
    assert!(matches!(refused(|r| r.gateway_v4 = "10.0.0.1".into()), E::GatewayOffLink(_)));
    assert_eq!(
        refused(|r| {
            r.addresses.remove(0);
            r.gateway_v4.clear();
        }),
        E::NothingToConfirm
    );
    assert_eq!(timeout(&AttachNetworkRequest { timeout_ms: 700_000, ..good() }), Err(E::Timeout(700_000)));
}

#[test]
fn a_link_local_gateway_needs_no_subnet() {
    let settings = Settings::try_from(&AttachNetworkRequest { gateway_v6: "fe80::1".into(), ..good() }).unwrap();
    assert_eq!(settings.gateway_v6, Some("fe80::1".parse().unwrap()));
}

proptest! {
    #[test]
    fn no_text_makes_the_parsers_panic(text in "\\PC{0,40}") {
        let _ = InterfaceName::try_from(text.as_str());
        let _ = MacAddr::try_from(text.as_str());
        let _ = Cidr::try_from(text.as_str());
    }

    #[test]
    fn a_subnet_holds_its_own_addresses(bits: u32, prefix in 1u8..=32, other: u32) {
        let cidr = Cidr { address: IpAddr::V4(bits.into()), prefix };
        let mask = u32::MAX << (32 - prefix);
        prop_assert_eq!(cidr.contains(IpAddr::V4(other.into())), bits & mask == other & mask);
    }

    #[test]
    fn mac_addresses_survive_the_round_trip(mut octets: [u8; 6]) {
        octets[0] = (octets[0] & 0xfe) | 2;
        let mac = MacAddr(octets);
        prop_assert_eq!(MacAddr::try_from(mac.to_string().as_str()), Ok(mac));
    }
}
