"""Reports: pages and plots that say what came out, of a data set and of a transfer.

Comes in: a set, or a finished run. Goes out: report.html with its pictures. May import transfer and
below.
"""
