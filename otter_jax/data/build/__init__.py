"""Makes every set in the same way: plan -> units -> parts -> set, with a report beside it.

In comes a `plan.Plan`, whose units read records; out comes a TFDS set in ArrayRecord files. May
import images, captions and worker of `data`; knows no format.
"""
