"""Reports: pages and plots of a data set, of a run or several, and of a transfer's results.

Comes in: a set, or a finished run. Goes out: report.html with its pictures. May import transfer and
below.
"""
