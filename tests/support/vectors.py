"""Raw messages of every form, for two channels: what the native path reads itself, and what it has to leave alone."""

from __future__ import annotations

from struct import pack

from support.relay_bytes import BINARY, MASK, PING, TEXT, chunk, floats, masked
from support.samples import T0_US

_NUMBERS = """
0 -0 0.0 -0.0 -0e0 0e0 0E+5 1 -1 1.5 -2.25 1e0 1E2 1e+2 1e-2 123456789 0.1 0.3 1e-45 1.4e-45 7e-46
7.006492321624085e-46 7.006492321624086e-46 1e-46 -1e-50 1e-400 1e-324 5e-324 2.4703282292062327e-324 1e400 -1e400
1e308 1e309 1e39 3.4028235e38 3.4028236e38 3.4028235677973362e38 3.4028235677973366e38 3.4028235677973367e38
-3.4028235677973362e38 16777216 16777217 16777219 9007199254740993 9223372036854775807 9223372036854775808
-9223372036854775808 -9223372036854775809 18446744073709551615 18446744073709551616
100000000000000000000000000000000000000 340282356779733642748073463979561713663
340282356779733661637539395458142568448 1e000000000000000000001
0.000000000000000000000000000000000000000000000000000000001e57 1.00000005960464477539062500000001
1.000000059604644775390625 1.00000017881393432617187500000001 0.1e1 1e5000 1e-5000 1e99999999999999999999 8388608.5
8388609.5 1.17549435e-38 1.1754943e-38 2.2250738585072011e-308 179769313486231580793728971405301e276 true false "1"
[1] {} nan NaN Infinity -Infinity null nul nulll 01 -01 1. .5 +1 -+1 - -a 1e 1e+ 1.e5 0x1 1_0 00 1,
"""
NUMBERS = [*_NUMBERS.split(), "1" * 50, "1" * 400, "0." + "3" * 1000, "1" + "0" * 38 + ".5", "1" * 30 + "e-25"]
NUMBERS.append("0." + "0" * 400 + "1")

WHOLE = [
    '{"type":"raw","channels":[%s]}',
    ' \t\n\r{ "type" : "raw" , "channels" : [ %s ] } \n',
    '{"channels":[%s],"type":"raw"}',
    '{"position":1,"channels":[%s],"timestamp":1764000000.5,"type":"raw"}',
    '{"type":"raw","samples":[[%s]]}',
    '{"type":"raw","samples":[[%s],[3,4]]}',
    '{"type":"raw","channels":[%s],"position":null,"timestamp":null}',
    '{"type":"raw","channels":[%s],"samples":null}',
    '{"type":"raw","channels":null,"samples":[[%s]]}',
    '{"type":"raw","channels":[%s],"samples":[[1,2]]}',
    '{"type":"raw","channels":[%s],"channels":[3,4]}',
    '{"type":"raw","type":"raw","channels":[%s]}',
    '{"type":"raw","type":"ping","channels":[%s],"t0":1}',
    '{"type":"ping","type":"raw","channels":[%s],"t0":1}',
    '{"type":"raw","position":1,"position":1,"channels":[%s]}',
    '{"type":"raw","timestamp":1,"timestamp":2,"channels":[%s]}',
    '{"type":"raw","channels":[%s],"extra":1}',
    '{"type":"raw","channels":[%s],"extra":{"a":[1,{"b":"}"}]}}',
    '{"type":"raw","Channels":[%s]}',
    '{"type":"Raw","channels":[%s]}',
    '{"type":"raw ","channels":[%s]}',
    '{"type":"r\\u0061w","channels":[%s]}',
    '{"type":"raw","ch\\u0061nnels":[%s]}',
    '{"t\\u0079pe":"raw","channels":[%s]}',
    '{"":1,"type":"raw","channels":[%s]}',
    '{"type":"raw","channels":[%s],}',
    '{"type":"raw","channels":[%s]}}',
    '{"type":"raw","channels":[%s]} x',
    '{"type":"raw","channels":[%s]}\0',
    '{"type":"raw","channels":[%s]',
    '{"type":"raw","channels":[%s}',
    '{"type":"raw" "channels":[%s]}',
    '{"type":"raw","channels":[[%s]]}',
    '{"type":"raw","samples":[%s]}',
    '{"type":"raw","samples":[[%s],[1]]}',
    '{"type":"raw","samples":[[%s],[]]}',
    '{"type":"raw","samples":[[%s]}',
    '{"type":"raw","channels":[%s,3]}',
    '[{"type":"raw","channels":[%s]}]',
    "{'type':'raw','channels':[%s]}",
    '\ufeff{"type":"raw","channels":[%s]}',
    '\xa0{"type":"raw","channels":[%s]}',
    '\x0b{"type":"raw","channels":[%s]}',
    '{"type":"raw","channels":[%s],"nöte":"\u2028"}',
]

_POSITIONS = """
1 0 2 5 1.0 1e0 -0 -1 01 null true "1" [] 9007199254740991 9007199254740990 9007199254740992 18446744073709551617
99999999999999999999 1e400 +1 1a
"""
POSITIONS = _POSITIONS.split()

_TIMES = """
0 -0 -0.0 0.0000001 0.0000005 0.0000015 0.001 0.000999 1 1764000000 1764000000.1234567 1764000000.1234565
1764086400.123457 1764086400.123458 1764086400.2 1e9 1e10 1e11 1e12 1000000000001 1e13 1e300 1e400 -1 -1e-7 -1e-6
-5e-7 null true "1" [] nul 17640000001234567890 1764000000.00000000000000000000000000001
"""
TIMES = _TIMES.split()

OTHERS = [
    b"",
    b"{}",
    b"null",
    b'"raw"',
    b'{"type":"raw"}',
    b'{"type":"raw","channels":[]}',
    b'{"type":"raw","samples":[]}',
    b'{"type":"raw","samples":[[]]}',
    b'{"type":"raw","channels":null}',
    b'{"type":"raw","channels":[1]}',
    b'{"type":null,"channels":[1,2]}',
    b'{"channels":[1,2]}',
    b'{"type":"raw","channels":[1,2],"x":"\xff"}',
    b'{"type":"raw","channels":[1,2],"x":"\xed\xa0\x80"}',
    b'\xef\xbb\xbf{"type":"raw","channels":[1,2]}',
    b'{"type":"raw","channels":[1,2],"x":"\xc3"}',
    b'{"type":"raw","channels":[1,2],"x":"\\ud800"}',
    b'{"type":"raw","channels":[1,2],"x":' + b"[" * 2000 + b"]" * 2000 + b"}",
    b'{"type":"features","workload":0.5}',
    b'{"type":"features","workload":0.5,"timestamp":1e15}',
    b'{"type":"features","x":"\\u0000"}',
    b'{"type":"ping","t0":1}',
    b'{"type":"ping"}',
    b'{"type":"auth","user_id":"x"}',
]

_TWO = floats(1.5, -2.25)
CHUNKS = [
    chunk(_TWO),
    chunk(_TWO, position=1),
    chunk(_TWO, position=0),
    chunk(_TWO, position=5),
    chunk(_TWO + _TWO, position=0),
    chunk(_TWO + _TWO),
    chunk(_TWO, position=-2),
    chunk(_TWO, position=(1 << 53) - 1),
    chunk(_TWO, position=(1 << 53) - 2),
    chunk(_TWO, position=1 << 53),
    chunk(_TWO, position=(1 << 63) - 1),
    chunk(_TWO, position=-(1 << 63)),
    *(chunk(_TWO, time_us=t) for t in (0, 1, -1, T0_US, T0_US + 60_000_000, T0_US + 60_000_001)),
    *(chunk(_TWO, time_us=t) for t in ((1 << 63) - 1, -(1 << 63) + 1)),
    *(chunk(_TWO, time_us=T0_US - 30 * 86_400_000_000 + offset_us) for offset_us in (-1, 0)),
    *(chunk(_TWO * 2, time_us=t) for t in (T0_US - 1_000_000, T0_US + 86_399_992_000, T0_US + 86_399_992_188)),
    *(chunk(_TWO * 2, time_us=t) for t in (T0_US + 86_399_992_187, (1 << 63) - 1, (1 << 63) - 8000)),
    *(
        chunk(_TWO, head=head)
        for head in (b"\0\1\1\0", b"\2\1\1\0", b"\1\0\1\0", b"\1\1\0\0", b"\1\1\1\1", b"\1\1\1\x80")
    ),
    *(chunk(_TWO, n_channels) for n_channels in (1, 2)),
    *(chunk(_TWO, n_channels, n_samples) for n_channels, n_samples in ((0, 0), (0, 1), (2, 0), (1, 1), (2, 2), (3, 1))),
    chunk(floats(1, 2, 3), 3),
    chunk(_TWO, 65535, 65535),
    chunk(_TWO)[:-1],
    chunk(_TWO) + b"\0",
    chunk(b"", 2, 1),
    chunk(_TWO)[:24],
    chunk(_TWO)[:23],
    chunk(_TWO)[:1],
    *(chunk(floats(1) + pack("<I", bits)) for bits in (0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF)),
    *(chunk(floats(1) + pack("<I", bits)) for bits in (0x80000000, 1, 0x807FFFFF, 0x7F7FFFFF, 0xFF7FFFFF, 0x7FBFFFFF)),
]

GOOD = b'{"type":"raw","channels":[1.5,null]}'
FRAMES = [
    masked(GOOD, TEXT, b"\0\0\0\0"),
    masked(GOOD, TEXT, form=126),
    masked(GOOD, TEXT, form=127),
    masked(GOOD, TEXT, None),
    *(masked(GOOD, opcode) for opcode in (0, 2, 3, 7, 8, 9, 10, 11, 15)),
    *(masked(GOOD, TEXT, first=first) for first in (0xC0, 0xA0, 0x90, 0x00, 0x40)),
    masked(b"hello", PING),
    masked(b"x" * 125, PING),
    masked(b"x" * 126, PING),
    masked(b"x", PING, first=0),
    masked(b"\x03\xe8", 8),
    masked(b"\x03\xe8bye", 8),
    masked(b"", 8),
    masked(b"\x03", 8),
    masked(b"\x03\xed", 8),
    masked(b"\x03\xe8\xff", 8),
    masked(GOOD.ljust(126), TEXT),
    masked(GOOD.ljust(125), TEXT),
    masked(GOOD.ljust(65535), TEXT),
    masked(GOOD.ljust(65536), TEXT),
    masked(GOOD.ljust(1 << 20), TEXT),
    masked(GOOD.ljust((1 << 20) + 1), TEXT),
    b"\x81\xff" + pack("!Q", (1 << 20) + 1),
    b"\x81\xff" + pack("!Q", (1 << 63) + 1) + MASK + b"x" * 20,
    b"\x81\xff" + pack("!Q", (1 << 64) - 1) + MASK,
    masked(GOOD, TEXT, first=0) + masked(b"ping", PING) + masked(b" ", 0),
    masked(GOOD, TEXT, first=0) + masked(GOOD, TEXT),
    masked(b"", TEXT, first=0) + masked(GOOD, 0),
    masked(GOOD, 0, first=0),
    masked(chunk(_TWO), BINARY, first=0) + masked(b"", 0, first=0) + masked(b"", 0),
]


def text_messages() -> list[bytes]:
    """All JSON messages."""
    texts = [whole.replace("%s", "0.5, null") for whole in WHOLE]
    texts += ['{"type":"raw","channels":[%s,1]}'.replace("%s", number) for number in NUMBERS]
    texts += ['{"type":"raw","channels":[1,2],"position":%s}'.replace("%s", position) for position in POSITIONS]
    texts += ['{"type":"raw","timestamp":%s,"channels":[1,2]}'.replace("%s", time) for time in TIMES]
    texts += ['{"type":"raw","timestamp":%s,"samples":[[1,2],[3,4],[5,6]]}'.replace("%s", time) for time in TIMES]
    return [text.encode() for text in texts] + OTHERS
