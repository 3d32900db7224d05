"""Which document a paragraph is a part of: paragraphs of one document are alike, and statistics must not count them as
independent (`howlow.analysis.quality_statistics`).

A document is an article where the text marks articles as WikiText does (a line `= Title =`), else a file. A single text
without such lines is cut into blocks of successive paragraphs, of which those of different blocks are nearly
independent (batch means; Schmeiser, Operations Research 30, 1982).
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from howlow.tasks.examples import Example

_HEADING = re.compile("= [^=]+ =")
_BLOCKS = 50


def with_documents(paragraphs: Sequence[Example]) -> list[Example]:
    """The paragraphs of texts, in order, each with its document; the id of a paragraph is its text's and a line."""
    texts = [paragraph.id.rpartition(":")[0] for paragraph in paragraphs]
    articles, number = list[str](), 0
    for text, paragraph in zip(texts, paragraphs, strict=True):
        number += _HEADING.fullmatch(paragraph.completion) is not None
        articles.append(f"{text}, article {number}")
    if not number and len(set(texts)) == 1:
        articles = [f"{texts[0]}, block {index * _BLOCKS // len(texts)}" for index in range(len(texts))]
    return [replace(paragraph, document=name) for paragraph, name in zip(paragraphs, articles, strict=True)]
