"""Protocols, runners, metrics, records and tables of the suite.

Importing this imports nothing heavy: protocols, records, statistics and tables need no torch.
"""

__version__ = "0.1.0"
