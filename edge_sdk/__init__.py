"""What runs on a device, and the protocol that both ends speak."""

from __future__ import annotations

__version__ = "0.1.0"
