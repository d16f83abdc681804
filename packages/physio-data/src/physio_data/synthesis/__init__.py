"""A documented generator of coupled ECG and PPG with known truth. Letters: K beats, L samples around a beat, C channels, T samples.

Subject `i` is keyed by (seed, i): the same person comes out whatever the number of subjects, and the same PPG whether or not the ECG is asked for.
Traits, rhythm, each channel and its noise have random streams of their own, so a change of noise leaves the beats alone.

Heartbeats: a tachogram of slow (0.1 Hz) and respiratory variability (McSharry et al. 2003, IEEE TBME 50:289, eq. 3) is
integrated to beat times; premature beats and fibrillation then change single intervals. ECG: the dynamical model of the same
paper (eq. 1-2) on its limit cycle, in closed form. PPG: every beat sends a pulse that arrives sooner, and whose reflected wave
returns sooner and higher, in a stiffer arterial tree.
"""

from physio_data.synthesis.artefacts import Noise
from physio_data.synthesis.cohort import SyntheticSubject, synthesize, synthesize_subject
from physio_data.synthesis.config import SynthesisConfig

__all__ = ["Noise", "SynthesisConfig", "SyntheticSubject", "synthesize", "synthesize_subject"]
