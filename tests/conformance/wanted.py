# SPDX-License-Identifier: Apache-2.0
"""Differences from Docker's engine that are meant, each with its reason.

A pattern is searched in `GROUP: CASE :: PATH: DOCKER -> ARCA`, the text of one difference.
"""

WANTED = [
]
