"""Filters that use every primitive of pcap-filter(7); and refused ones, each with the word that says why.

Addresses and ports are from the pools that tests/kernel/random_frames.py draws from.
"""

import re

HOSTS = """
host 10.0.0.1 | dst host 10.0.0.2 | src host 10.0.0.1 | src or dst host 10.0.0.3
src and dst host 10.0.0.1 | ip host 10.0.0.1 | arp host 10.0.0.1 | rarp host 10.0.0.2
ip src host 10.0.0.3 | arp src host 10.0.0.1 | host fd00::1 | dst host fd00::2 | src host fd00::1
ip6 host fd00::1 | not host 10.0.0.1 | net 10.0.0.0/24 | net 10 | dst net 10.0.0.0/30
src net 192.168.0.0 mask 255.255.0.0 | net fd00::/16 | src net 10.0.0.0/31 or dst net fd00::/64
ip net 192.168.1 | arp net 10.0.0.0/8 | net 0.0.0.0/0 | net ::/0
"""

ETHERS = """
ether host 02:00:00:00:00:01 | ether src 02:00:00:00:00:01 | ether dst 02:00:00:00:00:02
ether src or dst 02:00:00:00:00:03 | ether broadcast | broadcast | ether multicast | multicast
ether proto 0x0800 | ether proto \\arp | ether proto \\ip6 | ether proto 0x88cc | ether proto 66
ether[0] & 1 != 0 | ip | ip6 | arp | rarp | atalk | aarp | decnet | iso | stp | ipx | netbeui | lat
moprc | mopdl | llc | llc i | llc s | llc u | llc rr | llc rnr | llc rej | llc ui | llc ua | llc disc
llc sabme | llc test | llc xid | llc frmr | iso proto \\isis | clnp | esis | isis | l1 | l2 | iih | lsp
snp | csnp | psnp | decnet src 1.2 | decnet dst 1.2 | decnet host 1.2 | wlan host 02:00:00:00:00:01
link proto 66
"""

TRANSPORTS = """
tcp | udp | sctp | icmp | icmp6 | igmp | pim | ah | esp | vrrp | carp | igrp | ip proto 6 | ip proto \\tcp
ip proto 89 | ip6 proto 17 | ip6 proto \\udp | proto 47 | proto \\sctp | ip6 proto 44 | port 80
tcp port 80 | udp port 53 | sctp port 80 | port http | dst port 53 | src port 53 | tcp dst port 80
src port 1000 and dst port 2000 | udp src or dst port 53 | src and dst port 80 | ip6 and tcp port 80
ip and port 53 | portrange 50-60 | dst portrange 80-90 | src portrange 1000-1005 | tcp portrange 80-443
udp portrange 0-65535 | tcp dst portrange 1-1023 | not port 80 | tcp port 80 or 443 or 53
host 10.0.0.1 and not port 80 and not port 53
"""

EXPRESSIONS = """
less 60 | greater 100 | len > 80 | len <= 200 and len >= 60 | len = 60 | len != 60 | len - 14 > 50
len % 2 = 1 | tcp[tcpflags] & (tcp-syn|tcp-fin) != 0 | tcp[tcpflags] = tcp-syn | tcp[13] & 2 != 0
tcp[tcpflags] & tcp-push != 0
tcp[tcpflags] & (tcp-rst|tcp-ack|tcp-urg|tcp-ece|tcp-cwr) == (tcp-rst|tcp-ack)
tcp[12:1] & 0xf0 >> 2 > 20 | icmp[icmptype] = icmp-echo
icmp[icmptype] != icmp-echo and icmp[icmptype] != icmp-echoreply | icmp[icmpcode] = 1
icmp[0] = icmp-unreach | icmp6[icmp6type] = icmp6-echo | icmp6[0] > 127 | icmp6[icmp6code] = 0 | ip[8] < 5
ip[0] & 0xf != 5 | ip[6:2] & 0x1fff != 0 | ip[6:2] & 0x1fff = 0 and udp | ip[2:2] > 576
ip[12:4] = ip[16:4] | ip6[6] = 17 | ip6[4:2] > 20 | ip6[40] = 58 | arp[6:2] = 1 | arp[7] = 2 | rarp[7] = 3
ether[12:2] = 0x0806 | udp[4:2] > 16 | udp[8:4] = 0x47455420 | udp[8] = 71 | sctp[12] = 1 | igmp[0] = 0x16
pim[0] = 0x20 | ether[1000] = 0
tcp port 80 and (((ip[2:2] - ((ip[0]&0xf)<<2)) - ((tcp[12]&0xf0)>>2)) != 0) | ip[0] * 2 + 3 - 1 = 140
ip[0] / 16 = 4 | ip[0] % 16 = 5 | ip[8] / ip[9] > 1 | ip[8] % ip[9] = 4 | (ip[0] & 1)|1 = 1
ip[9] ^ 17 = 0 | ether[0:4] > 0xfffffff0 | ether[ether[12]:2] = 0x0200 | ether[ether[14:4]] = 0
ether[ether[14:2]:4] != 0 | ip[ip[8]] = 1 | ip[ip[2:2] - 1] = 0 | ip[ip[0:4]:4] = 0 | ether[len - 1] = 0
ether[len - 4:4] = 0 | ether[len] = 0 | ip[0] << ip[9] > 1000 | ip[0:4] >> ip[9] = 0 | -ip[0] = -69
(ip[0] & 0xf0) >> 4 = 4 | 1 << ip[9] != 0 | len / ip[6] > 2 | ip[-1:1] = 0 | ether[4294963199] = 0
ether[2147483647:4] = 1 | 0 = 0 | ip[0] - ip[8] > 100 | ip[12:4] * ip[16:4] > 5 | tcp[4:4] = 0
tcp[(tcp[12]&0xf0)>>2:4] = 0x47455420 | udp[udp[4:2] - 1] = 0 | icmp6[icmp6[0]] = 0 | ether[6:4] ^ len > 9
"""

BROADCASTS = "ip multicast | ip6 multicast | igmp or ip multicast | ether multicast and not ip6 multicast"

ENCAPSULATIONS = """
vlan | vlan 5 | vlan 5 and tcp port 80 | not vlan | vlan and not ip | vlan and vlan | vlan 9 and vlan 5
vlan and ip6 | vlan and vlan and udp | vlan or tcp port 80 | vlan and arp | vlan and host 10.0.0.1
vlan and ether[12:2] = 0x0800 | mpls | mpls 1000 | mpls and mpls 2000 | mpls and ip and tcp port 80
mpls 1000 and mpls and host 10.0.0.1 | vlan and mpls | pppoed | pppoes | pppoes 7 | pppoes and ip
pppoes 7 and tcp port 80 | pppoes and ip6 and udp | vlan and pppoes | geneve | geneve 77
geneve 77 and ip and tcp port 80 | geneve and arp | geneve and ether host 02:00:00:00:00:01
geneve and udp port 53 | geneve and ip6 | ifindex 1 | ifindex 7
"""

COMBINATIONS = """
host 10.0.0.1 and (port 80 or port 53) and not tcp
(tcp or udp) and (src net 10.0.0.0/30 or dst port 443) | not (host 10.0.0.1 or host 10.0.0.2) | not not ip
!tcp && !udp || icmp | ip and not (tcp or udp or icmp)
tcp[tcpflags] & tcp-syn != 0 and not src and dst net 10.0.0.0/8 | ((((tcp)))) and ((port 80))
ip host 10.0.0.1 and ip[8] > 32 and (udp[4:2] > 20 or tcp[13] = 24) and len < 1000
ether host 02:00:00:00:00:01 and (ip or ip6 or arp) and not broadcast | udp or tcp and port 53 or arp
"""

REFUSED = {
    "inbound": "--direction ingress",
    "outbound": "--direction ingress",
    "ip protochain 6": "protochain",
    "ip6 protochain \\tcp": "protochain",
    "protochain 51": "protochain",
    "gateway 10.0.0.1": "gateway",
    "ip broadcast": "netmask",
    "host eastwest.invalid": "unknown host",
    "ether host nobody": "unknown ether host",
    "port nosuchservice": "unknown port",
    "ifname eth0": "PF",
    "on eth0": "PF",
    "rnr 1": "PF",
    "rset x": "PF",
    "srnr 1": "PF",
    "reason match": "PF",
    "action pass": "PF",
    "wlan ra 02:00:00:00:00:01": "802.11",
    "wlan addr1 02:00:00:00:00:01": "802.11",
    "type mgt": "802.11",
    "type mgt subtype beacon": "802.11",
    "dir tods": "802.11",
    "vpi 1": "ATM",
    "vci 1": "ATM",
    "lane": "ATM",
    "oamf4": "ATM",
    "metac": "ATM",
    "connectmsg": "ATM",
    "ether[4294963204] = 0": "--direction ingress",
    "ether[4294963200:2] = 0": "metadata 0",
    "ether[4294963256] = 0": "metadata 56",
    "ether[4294967290] = 0": "metadata 4090",
    "ip and arp": "rejects all",
    "tcp port": "syntax error",
    "host 10.0.0.1 or": "syntax error",
    "((tcp)": "syntax error",
    "tcp]": "syntax error",
    "vlan 5000": "VLAN",
    "ip[0:3] = 1": "data size",
    "ip[0] / 0 = 1": "division by zero",
    "port 70000": "port",
    "net 10.0.0.0/33": "mask",
    "tcp\x1b[2J": "syntax error",
}

NOT_ON_RAW_IP = {
    "vlan": "VLAN",
    "ether host 02:00:00:00:00:01": "ethernet",
    "ether broadcast": "broadcast",
    "mpls": "MPLS",
    "ifindex 1": "",
    "inbound": "",
    "ip6 protochain 6": "protochain",
}


def _texts(block: str) -> list[str]:
    """Texts are parted by bars with a space on either side; an expression's own have none."""
    return [text.strip() for line in block.splitlines() for text in line.split(" | ") if text.strip()]


IP_TEXTS = [
    *_texts(HOSTS),
    *_texts(TRANSPORTS),
    *_texts(EXPRESSIONS),
    *_texts(COMBINATIONS),
    *_texts(BROADCASTS),
]
"""What can be asked of an Ethernet frame."""
TEXTS = [*IP_TEXTS, *_texts(ETHERS), *_texts(ENCAPSULATIONS)]
_ETHERNET_ONLY = re.compile(r"arp|ether host|ether multicast|ether\[ether\[12|ip\[-1")
RAW_TEXTS = [text for text in IP_TEXTS if not _ETHERNET_ONLY.search(text)]
"""What can be asked of an IP packet."""
