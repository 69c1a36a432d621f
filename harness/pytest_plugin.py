"""The pytest plugin that llmlab installs: `pytest --benchmark` and component ids in `-k`."""

from __future__ import annotations
