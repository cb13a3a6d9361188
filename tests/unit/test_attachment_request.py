"""What a request to attach a volume may say."""

import pytest
from pydantic import ValidationError

from api.schemas.attachments import AttachmentIn


@pytest.mark.parametrize("path", ["//srv/data", "/srv//data", "/srv/../etc", "/srv/.", "/srv/", "/", "srv", "/a\n/b"])
def test_a_path_that_is_not_in_its_shortest_form_is_refused(path: str) -> None:
    with pytest.raises(ValidationError, match="path"):
        AttachmentIn(node="web-1", holder="one", path=path)
    assert AttachmentIn(node="web-1", holder="one", path="/srv/data").path == "/srv/data"
