"""`glyphs`: made-up alphabets of handwritten characters, the dataset that needs no download.

As in the motor programs of Lake et al. 2015 ("Human-level concept learning through probabilistic
program induction"), a character is a short list of strokes tied to each other, an alphabet is a
style its characters share, and a drawing is one noisy execution of the character's program.

Points are complex numbers, x + iy with y downwards. Every random number is a function of
(seed, alphabet, character, drawing), so more alphabets, characters or drawings change no earlier
image. Only plain uniform numbers are drawn: their stream does not depend on a maths library.
"""

from __future__ import annotations

from .dataset import Glyphs

__all__ = ["Glyphs"]
