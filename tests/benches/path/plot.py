#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draws a result of `just bench path` as a PNG: one panel of bars for each figure, paths side by side.

Usage: plot.py RESULT.json PICTURE.png. Called by the bench. Needs nothing but Python: pixels, a font of three by five
dots, and zlib for the file (PNG, ISO/IEC 15948).
"""

import json
import struct
import sys
import zlib

FIGURES = ["UDP RTT at 100/s, p50", "UDP RTT flat out, p50", "UDP RTT flat out, p99", "TCP RTT flat out, p50",
           "1 TCP stream there", "1 TCP stream back", "4 TCP streams there", "UDP 64 B without loss",
           "UDP 64 B when 4x is offered", "CPU per GiB, 1 stream", "CPU per million frames",
           "context switches per frame", "longest gap when arca-relayd is killed", "longest gap when agent is killed"]
COLUMNS, PANEL_WIDTH, LINE, LEFT = 3, 560, 24, 190
PAPER, INK, GREY = (255, 255, 255), (30, 30, 30), (150, 150, 150)
COLOURS = {"arca": (32, 110, 190), "cable": (32, 110, 190), "kernel": (120, 120, 120), "taps": (120, 120, 120)}
OTHER = (214, 120, 40)
# Five rows of three dots each, from the top.
FONT = {
    "A": "25755", "B": "65656", "C": "34443", "D": "65556", "E": "74647", "F": "74644", "G": "34553", "H": "55755",
    "I": "72227", "J": "11152", "K": "55655", "L": "44447", "M": "57755", "N": "65555", "O": "25552", "P": "65644",
    "Q": "25561", "R": "65655", "S": "34216", "T": "72222", "U": "55557", "V": "55552", "W": "55775", "X": "55255",
    "Y": "55222", "Z": "71247", "0": "75557", "1": "26227", "2": "61247", "3": "61216", "4": "55711", "5": "74616",
    "6": "34757", "7": "71222", "8": "75757", "9": "75716", "-": "00700", ".": "00002", ",": "00024", "/": "11244",
    "%": "51245", "(": "12221", ")": "42224", "<": "12421", ":": "02020", "_": "00007",
}


class Picture:
    def __init__(self, width, height):
        self.width, self.height = width, height
        self.rows = [bytearray(PAPER * width) for _ in range(height)]

    def box(self, left, top, width, height, colour):
        for y in range(max(top, 0), min(top + height, self.height)):
            end = min(left + width, self.width)
            if end > left:
                self.rows[y][3 * left:3 * end] = bytes(colour) * (end - left)

    def text(self, left, top, words, colour=INK, size=2):
        for letter in words.upper():
            for row, dots in enumerate(FONT.get(letter, "00000")):
                for column in range(3):
                    if int(dots) & (4 >> column):
                        self.box(left + column * size, top + row * size, size, size, colour)
            left += 4 * size

    def write(self, path):
        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        pixels = b"".join(b"\0" + bytes(row) for row in self.rows)
        with open(path, "wb") as file:
            file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels, 9))
                       + chunk(b"IEND", b""))


def number(value):
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 20 else f"{value:.0f}"


def main():
    source, target = sys.argv[1:]
    with open(source, encoding="utf-8") as file:
        result = json.load(file)
    rows = {(row["path"], row["figure"]): row for row in result["rows"]}
    paths = list(dict.fromkeys(row["path"] for row in result["rows"]))
    figures = [figure for figure in FIGURES if any((path, figure) in rows for path in paths)]
    panel_height = 50 + LINE * max(len(paths), 1)
    down = -(-len(figures) // COLUMNS)
    picture = Picture(COLUMNS * PANEL_WIDTH, 50 + down * panel_height)
    picture.text(12, 14, f"frame path, {result['revision']}, load {result['loadBefore'].split()[0]}: medians, spread in grey", size=3)
    for index, figure in enumerate(figures):
        left, top = index % COLUMNS * PANEL_WIDTH + 12, 56 + index // COLUMNS * panel_height
        present = [(path, rows[path, figure]) for path in paths if (path, figure) in rows]
        greatest = max(max(row["samples"]) for _, row in present) or 1
        unit = present[0][1]["unit"]
        picture.text(left, top, f"{figure} ({unit})" if unit else figure, size=3)
        for line, (path, row) in enumerate(present):
            y = top + 26 + line * LINE
            scale = (PANEL_WIDTH - LEFT - 110) / greatest
            colour = next((c for start, c in COLOURS.items() if path.startswith(start)), OTHER)
            picture.text(left, y + 3, path)
            length = max(int(row["median"] * scale), 1)
            picture.box(left + LEFT, y, length, LINE - 8, colour)
            low, high = int(min(row["samples"]) * scale), int(max(row["samples"]) * scale)
            picture.box(left + LEFT + low, y + 6, max(high - low, 2), 4, GREY)
            picture.text(left + LEFT + max(length, high) + 8, y + 3, number(row["median"]))
    picture.write(target)


main()
