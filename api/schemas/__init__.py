"""Request and response bodies, as Pydantic models. They import the domain and nothing else of `api`."""
