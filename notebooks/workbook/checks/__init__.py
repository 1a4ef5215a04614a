"""The exercises: `check` tests the properties of a learner's answer, `progress` counts what is solved.

The exercises of a chapter stand in the module of its number.
"""

from workbook.checking import EXERCISES, Exercise, check, progress
from workbook.checks import (  # noqa: F401 - importing a chapter registers its exercises
    chapter_00,
    chapter_01,
    chapter_02,
    chapter_03,
    chapter_04,
    chapter_05,
    chapter_06,
    chapter_07,
    chapter_08,
    chapter_09,
)

__all__ = ["EXERCISES", "Exercise", "check", "progress"]
