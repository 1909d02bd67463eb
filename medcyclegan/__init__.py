"""medcyclegan: translation of medical volumes between modalities without paired data."""

__version__ = "0.1.0"
