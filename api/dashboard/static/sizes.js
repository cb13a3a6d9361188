// Sizes for people.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function sizeText(bytes) {
  const power = Math.min(UNITS.length - 1, Math.max(0, Math.floor(Math.log2(Math.max(1, bytes)) / 10)));
  return `${+(bytes / 1024 ** power).toFixed(1)} ${UNITS[power]}`;
}
