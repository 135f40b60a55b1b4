// Checks ExternalSecrets against the schema of their definition.
//
//   node check.mjs < LIST    LIST is a JSON array of manifests
//
// The schema accepts unknown keys; manifests.py checks that the operator makes the secrets that the pods mount.

import { readFileSync } from 'node:fs';
import { ExternalSecret } from '@kubernetes-models/external-secrets/external-secrets.io/v1';

const manifests = JSON.parse(readFileSync(0, 'utf8'));
let faults = manifests.length ? 0 : 1;
for (const manifest of manifests) {
  try {
    new ExternalSecret(manifest).validate();
  } catch (error) {
    faults += 1;
    console.error(`ExternalSecret ${manifest.metadata?.name}: ${error.message}`);
  }
}
console.error(`${manifests.length} ExternalSecrets`);
process.exit(faults ? 1 : 0);
