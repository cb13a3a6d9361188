// Starts Swagger UI on the page /docs. "Try it out" only reads: no example may grow or delete anything by a click.
window.addEventListener("load", () => {
  SwaggerUIBundle({
    url: "/openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    layout: "BaseLayout",
    presets: [SwaggerUIBundle.presets.apis],
    supportedSubmitMethods: ["get"],
    validatorUrl: null,
  });
});
