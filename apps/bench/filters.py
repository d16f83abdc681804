"""How fast records are filtered and resampled: 0.5-100 Hz and 500 -> 250 Hz, twelve leads of ten seconds, against SciPy lead by lead and all leads at once.

    uv run apps/bench/filters.py [--records 48] [--rounds 7]

All take turns on the same records, fresh ones each round; times are the least process time on one thread. The peers filter alike (Butterworth of order 4,
forward and backward) and resample with SciPy's own short filter, whose stop band begins above the new half rate; ours is 80 dB down there.
Shape letters: N records, C leads, T samples.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable

import numpy as np
from scipy.signal import butter, resample_poly, sosfiltfilt

from physio_data.filters import bandpass, resample

FS_IN, FS_OUT, BAND = 500.0, 250.0, (0.5, 100.0)
LIMITS = {"scipy, lead by lead": 2.5, "scipy, all leads": 1.0}


def ours(x_NCT: np.ndarray) -> np.ndarray:
    return resample(bandpass(x_NCT, FS_IN, *BAND), FS_IN, FS_OUT)


def by_lead(x_NCT: np.ndarray) -> np.ndarray:
    """A filter designed and run for every lead of every record."""
    out = [[resample_poly(sosfiltfilt(butter(4, BAND, "bandpass", fs=FS_IN, output="sos"), x_T), 1, 2) for x_T in x_CT] for x_CT in x_NCT]
    return np.array(out, np.float32)


def by_record(x_NCT: np.ndarray) -> np.ndarray:
    """A filter designed once, run over the leads of a record together."""
    sos = butter(4, BAND, "bandpass", fs=FS_IN, output="sos")
    return np.stack([resample_poly(sosfiltfilt(sos, x_CT, axis=-1), 1, 2, axis=-1) for x_CT in x_NCT]).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    runs: dict[str, Callable[[np.ndarray], np.ndarray]] = {"ours": ours, "scipy, lead by lead": by_lead, "scipy, all leads": by_record}
    least = dict.fromkeys(runs, float("inf"))
    inner = slice(1000, -1000)  # the ends are extended by other lengths, and 0.5 Hz rings for seconds
    apart = 0.0
    for i in range(args.rounds):
        x_NCT = np.random.default_rng(i).standard_normal((args.records, 12, 5000)).cumsum(-1).astype(np.float32)
        x_NCT = bandpass(x_NCT, FS_IN, 1.0, 40.0)  # what both resampling filters pass
        found = {}
        for name, run in runs.items():
            start = time.process_time()
            found[name] = run(x_NCT)
            least[name] = min(least[name], time.process_time() - start)
        scale = float(np.std(found["ours"]))
        apart = max(apart, *(float(np.abs(found[name] - found["ours"])[..., inner].max()) / scale for name in runs))
    summary, held = {"largest difference, in standard deviations": round(apart, 5)}, apart < 0.05
    print(f"ours: {1e3 * least['ours'] / args.records:.2f} ms a record of 12 x 5000 samples; the results differ by at most {apart:.1e} standard deviations")
    for name, must in LIMITS.items():
        ratio = least[name] / least["ours"]
        summary[name] = round(ratio, 2)
        held &= ratio >= must
        verdict = "holds" if ratio >= must else "FALLS SHORT"
        print(f"  {name:22s} {1e3 * least[name] / args.records:7.2f} ms  {ratio:5.2f} times  must {must:g}  {verdict}")
    print(json.dumps(summary))
    sys.exit(0 if held else 1)


if __name__ == "__main__":
    main()
