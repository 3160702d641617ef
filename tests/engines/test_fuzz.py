"""A few seconds of `make fuzz`: the CPU engine under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import re
import sys

import pytest

from tests.support import fuzzed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gcc's sanitizers, as they come with Linux")
SECONDS = 4.0


@pytest.mark.parametrize("what, least", [("rows", 100), ("threads", 40)])
def test_a_few_seconds(what, least):
    done = fuzzed.run(what, 1, SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(re.match(r"(\d+) cases", done.stdout).group(1)) > least
