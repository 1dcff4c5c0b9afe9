"""The string formats that can be held, each as a regular expression that takes no string without the format.

Some take less than their standard: no leap seconds, no quoted names in addresses, no host names beyond ASCII.
"""

from __future__ import annotations

from typing import Final

_LEAP_YEAR = "(?:(?:[0-9][0-9])(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = (
    "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:[Zz]|[+-]{_CLOCK})"

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_GROUP = "[0-9A-Fa-f]{1,4}"
_IPV6 = f"(?:{
    '|'.join(
        [
            f'(?:{_GROUP}:){{7}}(?:{_GROUP}|:)',
            f'::(?:{_GROUP}(?::{_GROUP}){{0,6}})?',
            *(
                f'{_GROUP}(?::{_GROUP}){{0,{before - 1}}}::(?:{_GROUP}(?::{_GROUP}){{0,{6 - before}}})?'
                for before in range(1, 7)
            ),
        ]
    )
})"

# A label of a host name, and eight of them: at most 247 characters. Hyphens at the third and fourth place of a label
# belong to the encoding of other alphabets.
_LABEL = "(?:[A-Za-z0-9]{1,2}|[A-Za-z0-9][A-Za-z0-9-][A-Za-z0-9](?:[A-Za-z0-9-]{0,26}[A-Za-z0-9])?)"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL}){{0,7}})"

_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_ATOMS = rf"(?:{_ATOM}{{1,31}}(?:\.{_ATOM}{{1,31}})?)"

_PERCENT = "%[0-9A-Fa-f]{2}"
_PATH = rf"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|{_PERCENT})"
_NAME = rf"(?:[A-Za-z0-9._~!$&'()*+,;=-]|{_PERCENT})"
_QUERY = rf"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|{_PERCENT})*"
_AUTHORITY = rf"(?:(?:[A-Za-z0-9._~!$&'()*+,;=:-]|{_PERCENT})*@)?(?:\[{_IPV6}\]|{_NAME}*)(?::[0-9]{{0,5}})?"
_REST = rf"(?:\?{_QUERY})?(?:#{_QUERY})?"
_HIERARCHY = rf"(?://{_AUTHORITY}(?:/{_PATH}*)*|/(?:{_PATH}+(?:/{_PATH}*)*)?|{_PATH}+(?:/{_PATH}*)*|)"
_URI = rf"[A-Za-z][A-Za-z0-9+.-]*:{_HIERARCHY}{_REST}"

_NUMBER = "[0-9]{1,9}"
_DURATION_TIME = rf"T(?:{_NUMBER}H(?:{_NUMBER}M(?:{_NUMBER}S)?)?|{_NUMBER}M(?:{_NUMBER}S)?|{_NUMBER}S)"
_DURATION_DATE = rf"(?:{_NUMBER}Y(?:{_NUMBER}M(?:{_NUMBER}D)?)?|{_NUMBER}M(?:{_NUMBER}D)?|{_NUMBER}D)"
_DURATION = rf"P(?:{_DURATION_DATE}(?:{_DURATION_TIME})?|{_DURATION_TIME}|{_NUMBER}W)"

PATTERNS: Final = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[Tt]{_TIME}",
    "duration": _DURATION,
    "email": f"{_ATOMS}@{_HOST}",
    "hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uuid": "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}",
    "uri": _URI,
    "json-pointer": "(?:/(?:[^~/]|~[01])*)*",
    "byte": "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",
}
"""What strings of a format match as a whole; for the translation of patterns."""

BOUNDS: Final = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(10**15), 10**15),
    "uint32": (0, 2**32 - 1),
}
"""Bounds of numeric formats (OpenAPI's). 64 bits are more than can be held exactly."""

NO_MEANING: Final = frozenset({"float", "double", "password", "binary"})
"""Formats that restrict no value: how numbers and texts are stored, how a form looks."""
