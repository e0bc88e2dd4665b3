"""One HTML page about one run, or about several compared.

facts (what the run's files say) and tasks (what its model does) → collect → page, whose sections
are in figures and examples, drawn with charts, markup and style.
"""
