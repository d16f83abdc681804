"""Print how many tests were skipped and why; fail when one asks for shared data that is there."""

import re
import sys
from collections import Counter
from pathlib import Path

log, shared = Path(sys.argv[1]).read_text(encoding="utf-8"), Path(sys.argv[2])
reasons: Counter[str] = Counter()
for count, reason in re.findall(r"^SKIPPED \[(\d+)\] [^\n]*?: (.*)$", log, flags=re.MULTILINE):
    reasons[reason] += int(count)
print(f"{sum(reasons.values())} tests skipped")
for reason, count in reasons.most_common():
    print(f"  {count:4d}  {reason}")
if shared.is_dir() and any("shared data absent" in reason for reason in reasons):
    sys.exit(f"tests skipped for missing shared data although {shared} is there")
