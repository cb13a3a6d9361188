"""The key that the tests send: a system key, in every database that is made from the template."""

from domain.access.secret import new_secret

NAME = "tests"
SECRET = new_secret()
#: The header that sends it.
BEARER = {"Authorization": f"Bearer {SECRET.text}"}
#: Inserts it.
INSERT = (
    "INSERT INTO api_keys (id, public_id, digest, name, role) VALUES"
    f" (gen_random_uuid(), '{SECRET.proof.public_id}', '\\x{SECRET.proof.digest.hex()}', '{NAME}', 'system')"
)
