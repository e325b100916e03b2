use super::*;

fn rules(interface: &str, agent: &str) -> Rules {
    Rules {
        interface: interface.parse().unwrap(),
        agent: agent.parse().unwrap(),
        container: None,
    }
}

fn listing(hooks: &[&str], chain: Option<&[&str]>) -> Listing {
    let own = |rules: &[&str]| rules.iter().map(|&rule| rule.to_owned()).collect();
    Listing {
        hooks: own(hooks),
        chain: chain.map(own),
    }
}

const KUBE: &str =
    "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES";
const KIAM: &str = "-A PREROUTING -d 169.254.169.254/32 -i cali+ -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.9:8181";

#[test]
fn an_empty_table_gets_the_chain_and_the_jumps_to_it() {
    let empty = Listing::default();
    for (interface, agent, family, table, expected) in [
        (
            "cali+",
            "10.0.0.1:8181",
            Family::V4,
            Table::Nat,
            Some(
                "*nat\n\
                 :KIAM-METADATA - [0:0]\n\
                 -A KIAM-METADATA -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181\n\
                 -I PREROUTING 1 -d 169.254.169.254/32 -i cali+ -j KIAM-METADATA\n\
                 COMMIT\n",
            ),
        ),
        (
            "!eth0",
            "10.0.0.1:8181",
            Family::V4,
            Table::Filter,
            Some(
                "*filter\n\
                 :KIAM-METADATA - [0:0]\n\
                 -A KIAM-METADATA -i lo -j RETURN\n\
                 -A KIAM-METADATA -p tcp -j REJECT --reject-with tcp-reset\n\
                 -A KIAM-METADATA -j REJECT --reject-with icmp-port-unreachable\n\
                 -I INPUT 1 -d 169.254.169.254/32 ! -i eth0 -j KIAM-METADATA\n\
                 -I FORWARD 1 -d 169.254.169.254/32 ! -i eth0 -j KIAM-METADATA\n\
                 COMMIT\n",
            ),
        ),
        ("cali+", "10.0.0.1:8181", Family::V6, Table::Nat, None),
        (
            "cali+",
            "[fd00::1]:8181",
            Family::V6,
            Table::Nat,
            Some(
                "*nat\n\
                 :KIAM-METADATA - [0:0]\n\
                 -A KIAM-METADATA -p tcp -m tcp --dport 80 -j DNAT --to-destination [fd00::1]:8181\n\
                 -I PREROUTING 1 -d fd00:ec2::254/128 -i cali+ -j KIAM-METADATA\n\
                 COMMIT\n",
            ),
        ),
        ("cali+", "[fd00::1]:8181", Family::V4, Table::Nat, None),
    ] {
        let script = rules(interface, agent).install(family, table, &empty);
        assert_eq!(script.as_deref(), expected, "{interface} {agent}");
    }
    let refused = rules("cali+", "10.0.0.1:8181").install(Family::V6, Table::Filter, &empty);
    assert!(refused.unwrap().contains("icmp6-port-unreachable"));
}

#[test]
fn rules_of_earlier_agents_are_replaced_in_the_same_script() {
    let jump = "-A PREROUTING -d 169.254.169.254/32 -i lxc+ -j KIAM-METADATA";
    let now = listing(
        &[KIAM, KUBE, jump, KIAM],
        Some(&["-A KIAM-METADATA -j RETURN"]),
    );
    let script = rules("cali+", "10.0.0.1:8181")
        .install(Family::V4, Table::Nat, &now)
        .unwrap();
    let deleted: Vec<_> = script
        .lines()
        .filter(|line| line.starts_with("-D"))
        .collect();
    assert_eq!(
        deleted,
        [
            &KIAM.replace("-A", "-D"),
            &jump.replace("-A", "-D"),
            &KIAM.replace("-A", "-D"),
        ]
    );
    // Declaring the chain empties it.
    assert!(script.contains("\n:KIAM-METADATA - [0:0]\n"), "{script}");
    assert!(!script.contains("KUBE"), "{script}");
    assert_eq!(script.matches("COMMIT").count(), 1);
}

#[test]
fn only_rules_that_redirect_the_same_connections_are_stale() {
    for (rule, stale) in [
        (KIAM, true),
        (KUBE, false),
        // From kube2iam, with a comment.
        (
            "-A PREROUTING -d 169.254.169.254/32 ! -i eth0 -p tcp -m tcp --dport 80 -m comment --comment \"a b\" -j DNAT --to-destination 10.0.0.1:8181",
            true,
        ),
        (
            "-A PREROUTING -d fd00:ec2::254/128 -i cali+ -p tcp -m tcp --dport 80 -j DNAT --to-destination [fd00::1]:8181",
            true,
        ),
        (
            "-A PREROUTING ! -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:3128",
            false,
        ),
        (
            "-A PREROUTING -d 169.254.169.254/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.0.0.1:53",
            false,
        ),
        (
            "-A PREROUTING -d 169.254.169.253/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:53",
            false,
        ),
        ("-A PREROUTING -d 169.254.169.254/32 -j aad-metadata", false),
    ] {
        assert_eq!(is_stale(rule), stale, "{rule}");
    }
}

#[test]
fn all_rules_of_the_agent_are_removed_and_no_others() {
    assert_eq!(remove(Table::Nat, &Listing::default()), None);
    assert_eq!(remove(Table::Nat, &listing(&[KUBE], None)), None);
    let jump = "-A INPUT -d 169.254.169.254/32 -i cali+ -j KIAM-METADATA";
    let now = listing(&["-A INPUT -j ACCEPT", jump], Some(&[]));
    assert_eq!(
        remove(Table::Filter, &now).unwrap(),
        "*filter\n\
         -D INPUT -d 169.254.169.254/32 -i cali+ -j KIAM-METADATA\n\
         -F KIAM-METADATA\n\
         -X KIAM-METADATA\n\
         COMMIT\n"
    );
    // A family that is no longer redirected loses its rules.
    let before = listing(&[&jump.replace("INPUT", "PREROUTING")], Some(&[]));
    let script = rules("cali+", "[fd00::1]:8181").install(Family::V4, Table::Nat, &before);
    assert_eq!(script, remove(Table::Nat, &before));
}

#[test]
fn rules_of_the_agent_are_distinguished_from_others() {
    let jump = "-A FORWARD -d 169.254.169.254/32 -i cali+ -j KIAM-METADATA";
    let chain = "-A KIAM-METADATA -i lo -j RETURN";
    let now = listing(&["-A FORWARD -j cali-FORWARD", jump], Some(&[chain]));
    assert_eq!(now.ours(), [jump, chain]);
    let printed = format!("-P FORWARD ACCEPT\n-N {CHAIN}\n{jump}  \n# Warning: x\n");
    assert_eq!(Listing::rules(&printed).collect::<Vec<_>>(), [jump]);
    let rules = rules("cali+", "10.0.0.1:8181");
    for (family, table, count) in [
        (Family::V4, Table::Nat, 2),
        (Family::V6, Table::Nat, 0),
        (Family::V4, Table::Filter, 5),
        (Family::V6, Table::Filter, 5),
    ] {
        assert_eq!(rules.count(family, table), count);
    }
}

#[test]
fn the_container_address_is_redirected_but_not_guarded() {
    let rules = Rules {
        container: Some("169.254.170.2".parse().unwrap()),
        ..rules("cali+", "10.0.0.1:8181")
    };
    let empty = Listing::default();
    let script = |family, table| rules.install(family, table, &empty).unwrap_or_default();
    let jump = "-I PREROUTING 1 -d 169.254.170.2/32 -i cali+ -j KIAM-METADATA\n";
    assert!(script(Family::V4, Table::Nat).contains(jump));
    assert_eq!(rules.count(Family::V4, Table::Nat), 3);
    assert!(!script(Family::V4, Table::Filter).contains("169.254.170.2"));
    assert!(!script(Family::V6, Table::Filter).contains("169.254.170.2"));
}
