"""Recognise the prefixes of kernel messages in saved logs, and what mail or grep adds before them.

The prefixes are those of dmesg (util-linux and busybox), journalctl's short formats (systemd's
logs-show.c), RFC 3164 and RFC 5424 syslog, and OpenWrt's logread. Month and weekday names are those
of any language.
"""

import re
from typing import Final

__all__ = ["PREFIX", "Envelope", "has_time"]

#: A month, day and time of any language: ``Nov 24 17:19:55``, ``11月 24 17:19:55``. SONiC adds the
#: year before it; a web page may show ``Oct 2`` with one space.
_SHORT_TIME: Final = r"(?:\d{4}\ )?\S{1,12}\ \ ?\d{1,2}\ \d\d:\d\d:[\d.:]{2,17}"
#: ``2026-11-24T17:19:55+0000``, ``Tue 2026-11-24 17:19:55 UTC``, also with ``+03`` as a zone.
_ISO_TIME: Final = (
    r"(?:\S{1,12}\ )?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:[-+\d.,:Z]{2,25}(?:\ (?:[A-Z]{2,6}|[-+]\d{2,6}))?"
)
_LEVEL: Final = "(?:EMERG|ALERT|CRIT|ERR|WARNING|NOTICE|INFO|DEBUG)"
#: A hostname ends without a colon; the name of a program has one behind it.
_HOST: Final = r"(?:[^\s\[\]]{0,254}[^\s\[\]:]\ )?"
#: The structured data of RFC 5424.
_STRUCTURED: Final = (
    r'(?:-|(?:\[[^\]"]{1,255}(?:"(?:[^"\\]|\\.){0,1024}"[^\]"]{0,255}){0,32}\]){1,16})'
)

#: The prefixes of a message in a saved log.
PREFIX: Final = re.compile(
    rf"""\A
    (?:<\d{{1,3}}>)?                                    # dmesg --raw, /proc/kmsg
    (?:[a-z][a-z0-9]{{1,8}}\ *:[a-z]{{1,8}}\ *:\ )?     # dmesg --decode
    (?:
        \d{{1,4}},\d{{1,20}},\d{{1,20}},[^;]{{1,200}};  # /dev/kmsg
      | (?:1\ )?                                        # syslog, and journalctl -o short…
        (?: {_SHORT_TIME}
          | {_ISO_TIME}
          | \d{{1,12}}\.\d{{1,9}}
          | \[[ \d.<>+]{{1,50}}\]
        )
        \ {_HOST}(?:(?:kern\.[a-z]{{2,8}}|{_LEVEL})\ )?  # busybox and SONiC add the level
        kernel(?::\ |\ \S{{1,128}}\ \S{{1,32}}\ {_STRUCTURED}\ \ufeff?)
      | \S{{1,12}}\ \S{{1,12}}\ [ \d]\d\ [\d:]{{8}}\ \d{{4}}\ kern\.[a-z]{{2,8}}\ kernel:\ # OpenWrt
      | \d{{4}}-\d\d-\d\dT\d\d:\d\d:[-+\d.,:Z]{{2,25}}[ ]   # dmesg --time-format=iso
    )?
    (?:\[[^]]{{1,60}}\]\ ?){{0,3}}                      # the time, the caller
    """,
    re.ASCII | re.VERBOSE,
)

#: The colours of dmesg --color and of terminals.
_COLOURS: Final = re.compile(r"\x1b\[[\d;]{0,32}[mK]", re.ASCII)
#: A quotation mark of mail, an indentation.
_LEAD: Final = re.compile(r"(?:[ \t]{0,64}>){0,8}[ \t]{0,64}")
#: What grep -n and grep -H write before a line.
_GREP: Final = re.compile(r"(?:[^\s:]{1,255}[:-])?\d{1,9}[:-]|[^\s:\[\]<>]{1,255}:(?=\S)", re.ASCII)


class Envelope:
    """Removes colours, and what mail or grep added before each line.

    What was added is learned from the first line with the time of a kernel message. A further
    indentation is not removed: dmesg indents the second line of a message, which may quote a name
    that any user can choose.
    """

    def __init__(self) -> None:
        self._known = False
        self._lead = ""
        self._has_grep = False

    def open(self, line: str) -> str:
        """Return a line without what was added to it."""
        if "\x1b" in line:
            line = _COLOURS.sub("", line)
        if line[:1] == "\ufeff":
            line = line[1:]
        if not self._known:
            self._learn(line)
        if self._lead:
            if not line.startswith(self._lead):
                return line
            line = line[len(self._lead) :]
        if self._has_grep and (match := _GREP.match(line)):
            line = line[match.end() :]
        return line

    def _learn(self, line: str) -> None:
        if has_time(line):
            self._known = True
            return
        lead = _LEAD.match(line)
        end = lead.end() if lead else 0
        grep = _GREP.match(line, end)
        if end and has_time(line[end:]):
            self._known, self._lead = True, line[:end]
        elif grep and has_time(line[grep.end() :]):
            self._known, self._lead, self._has_grep = True, line[:end], True


def has_time(line: str) -> bool:
    """Return whether a line begins with a prefix that holds a time or a priority."""
    end = PREFIX.match(line)
    return end is not None and any(map(str.isdigit, end[0]))
