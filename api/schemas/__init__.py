"""Request and response bodies as Pydantic models, one module per subject. They import the domain and `api.problems`."""
