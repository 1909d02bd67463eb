"""Digital head phantoms: registered MR and CT of invented heads, with known HU, for the demo and the tests.

A *head* is a continuous anatomy: it gives the tissue at any point. `sample` looks at it on a voxel grid, which gives a
`Phantom`, and `write_cohort` writes a folder of such scans, a *cohort*. *Head space* is RAS+ mm with the origin in the
middle of the brain, about where the MNI atlas has it; a head's *pose* takes head space to *world* (RAS+ mm). The
anatomy is a cartoon: it is there so that an MR needs anatomy to be turned into HU (cortical bone and air are both
dark), not to teach anatomy.
"""

from medcyclegan.phantom.anatomy import Head, Tissue, head
from medcyclegan.phantom.cohort import Cohort, write_cohort
from medcyclegan.phantom.scan import CT_NOISE_HU, HU, MR_SNR, Phantom, sample, spin_echo

__all__ = [
    "CT_NOISE_HU",
    "HU",
    "MR_SNR",
    "Cohort",
    "Head",
    "Phantom",
    "Tissue",
    "head",
    "sample",
    "spin_echo",
    "write_cohort",
]
