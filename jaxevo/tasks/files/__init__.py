"""Published data sets as files: found or downloaded, checked, and read."""

from jaxevo.tasks.files.published import PUBLISHED
from jaxevo.tasks.files.readers import Labelled, Split, load_images

__all__ = ["PUBLISHED", "Labelled", "Split", "load_images"]
