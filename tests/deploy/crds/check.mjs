// What is wrong with custom resources. stdin: a JSON array of them; argument: the folder where package.json was installed.
// stdout: a JSON array of the same length, of arrays of sentences.
//
// Two checks of each, by packages made from the CRDs' own Go types: its validator finds what is missing, of a wrong type, or
// out of an enumeration; TypeScript, which refuses unknown properties of a literal, finds names that there are not.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const folder = path.resolve(process.argv[2]);
const ts = createRequire(path.join(folder, "package.json"))("typescript");
const PACKAGES = {
  "keda.sh": "keda",
  "gateway.networking.k8s.io": "gateway-api",
  "monitoring.coreos.com": "prometheus-operator",
};

/** The module of a resource's class and interface, without its suffix. */
function moduleOf({ apiVersion, kind }) {
  const name = PACKAGES[apiVersion.split("/")[0]];
  if (name === undefined) throw new Error(`no schema is known for ${apiVersion} ${kind}`);
  return `@kubernetes-models/${name}/${apiVersion}/${kind}`;
}

async function wrongValues(resource) {
  const file = path.join(folder, "node_modules", `${moduleOf(resource)}.js`);
  const { [resource.kind]: Class } = await import(pathToFileURL(file));
  try {
    await new Class(resource).validate();
    return [];
  } catch (error) {
    return [error.message];
  }
}

/** By index of the resource. */
function unknownNames(resources) {
  const source = path.join(folder, "resources.ts");
  const lines = resources.map(
    (resource, i) => `export const r${i}: import("${moduleOf(resource)}").I${resource.kind} = ${JSON.stringify(resource)};`,
  );
  const options = {
    strict: true,
    noEmit: true,
    skipLibCheck: true,
    types: [],
    target: ts.ScriptTarget.ESNext,
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
  };
  const host = ts.createCompilerHost(options);
  const { getSourceFile, fileExists } = host;
  host.fileExists = (name) => name === source || fileExists(name);
  host.getSourceFile = (name, ...rest) =>
    name === source ? ts.createSourceFile(name, lines.join("\n"), ...rest) : getSourceFile.call(host, name, ...rest);
  const found = resources.map(() => []);
  for (const diagnostic of ts.getPreEmitDiagnostics(ts.createProgram([source], options, host))) {
    const text = ts.flattenDiagnosticMessageText(diagnostic.messageText, " ");
    if (diagnostic.file?.fileName !== source) throw new Error(text);
    found[diagnostic.file.getLineAndCharacterOfPosition(diagnostic.start).line].push(text);
  }
  return found;
}

const resources = JSON.parse(readFileSync(0, "utf8"));
const unknown = unknownNames(resources);
const wrong = await Promise.all(resources.map(wrongValues));
console.log(JSON.stringify(resources.map((_, i) => [...wrong[i], ...unknown[i]])));
