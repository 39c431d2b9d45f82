// Verify in this browser: the record's hash, its path to the root, and the checkpoint's signature under a log key that
// the auditor brings. WebCrypto does SHA-256 and Ed25519; everything else is below and fits on a few screens.
//
// Trusts: the pasted key, and this file, which comes from the server it checks: the page says so. Never: sends anything
// anywhere; it keeps a key and the largest checkpoint seen under it, in localStorage, and only if asked to.

const ED25519 = 1; // signature type of the signed-note format
const MAX_SIZE = 2n ** 62n;
const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

class Wrong extends Error {}

function require(condition, sentence) {
  if (!condition) throw new Wrong(sentence);
}

// Bytes ---------------------------------------------------------------------------------------------------------------

function fromBase64(text) {
  require(/^[A-Za-z0-9+/]*={0,2}$/.test(text) && text.length % 4 === 0, 'Something that should be base64 is not.');
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  require(toBase64(bytes) === text, 'A base64 text is not the one form of its bytes.');
  return bytes;
}

const toBase64 = (bytes) => btoa(String.fromCharCode(...bytes));
const toHex = (bytes) => Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
const same = (one, other) => toHex(one) === toHex(other);

async function sha256(...parts) {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return new Uint8Array(await crypto.subtle.digest('SHA-256', whole));
}

// Keys and checkpoints (C2SP signed-note, tlog-checkpoint) --------------------------------------------------------------

async function parseKey(text) {
  const [name, id, ...rest] = text.trim().split('+');
  require(name && rest.length && /^[0-9a-f]{8}$/.test(id), 'A log key looks like NAME+KEYID+BASE64.');
  const blob = fromBase64(rest.join('+'));
  require(blob.length === 33 && blob[0] === ED25519, 'This is not an Ed25519 log key.');
  require(await keyId(name, blob) === id, 'This log key is damaged: its id does not belong to it.');
  const usable = await crypto.subtle.importKey('raw', blob.slice(1), { name: 'Ed25519' }, true, ['verify']);
  return { name, id, blob, usable, text: `${name}+${id}+${toBase64(blob)}` };
}

async function keyId(name, blob) {
  return toHex((await sha256(encoder.encode(`${name}\n`), blob)).slice(0, 4));
}

// A log begins a new shard each half-year, under the same key: NAME/2030h1 belongs to the key of NAME.
const isOfKey = (origin, name) => origin === name || (origin.startsWith(`${name}/`) && /^\d{4}h[12]$/.test(origin.slice(name.length + 1)));

const logOf = (origin) => origin.replace(/\/\d{4}h[12]$/, '');

function parseNote(note) {
  const text = decoder.decode(note);
  const end = text.lastIndexOf('\n\n');
  require(end > 0 && text.endsWith('\n'), 'The checkpoint is not a signed note.');
  const [origin, size, root, ...more] = text.slice(0, end).split('\n');
  require(origin && more.length === 0 && /^(0|[1-9]\d{0,18})$/.test(size), 'The checkpoint is malformed.');
  const signatures = text.slice(end + 2, -1).split('\n').map((line) => {
    const parts = /^\u2014 (\S+) (\S+)$/.exec(line);
    require(parts, 'A signature line of the checkpoint is malformed.');
    return { name: parts[1], blob: fromBase64(parts[2]) };
  });
  const checkpoint = { origin, size: BigInt(size), root: fromBase64(root), signatures };
  require(checkpoint.root.length === 32 && checkpoint.size <= MAX_SIZE, 'The checkpoint is malformed.');
  return { ...checkpoint, signed: encoder.encode(text.slice(0, end + 1)) };
}

async function requireSigned(checkpoint, key) {
  require(isOfKey(checkpoint.origin, key.name), `The checkpoint is of ${checkpoint.origin}, the key is of ${key.name}.`);
  const id = await keyId(checkpoint.origin, key.blob);
  const mine = checkpoint.signatures.filter(({ name, blob }) => name === checkpoint.origin && toHex(blob.slice(0, 4)) === id);
  require(mine.length > 0, 'This key did not sign the checkpoint.');
  for (const { blob } of mine) {
    const holds = await crypto.subtle.verify({ name: 'Ed25519' }, key.usable, blob.slice(4), checkpoint.signed);
    require(holds, 'The checkpoint’s signature does not hold under this key.');
  }
}

// The tree (RFC 9162 section 2.1.3.2) -----------------------------------------------------------------------------------

async function climb(leafHash, index, size, proof) {
  require(index < size, 'The record is not in the tree of the checkpoint.');
  let [node, last, running] = [index, size - 1n, leafHash];
  const path = [running];
  for (const sibling of proof) {
    require(sibling.length === 32 && last > 0n, 'The proof is malformed.');
    if (node % 2n === 1n || node === last) {
      running = await sha256(Uint8Array.of(1), sibling, running);
      while (node % 2n === 0n && node !== 0n) [node, last] = [node / 2n, last / 2n];
    } else {
      running = await sha256(Uint8Array.of(1), running, sibling);
    }
    [node, last] = [node / 2n, last / 2n];
    path.push(running);
  }
  require(last === 0n, 'The proof is too short.');
  return path;
}

// The page --------------------------------------------------------------------------------------------------------------

const place = document.getElementById('verify');
const steps = document.getElementById('steps');
const verdict = document.getElementById('verdict');

function say(kind, text) {
  const item = document.createElement('li');
  item.className = kind;
  item.textContent = text;
  steps.append(item);
}

function conclude(kind, text) {
  const line = document.createElement('p');
  line.className = kind;
  line.textContent = text;
  verdict.replaceChildren(line);
}

// The one canonical form (RFC 8785): what has another is no record, however it hashes.
function parseCanonical(leaf) {
  const text = decoder.decode(leaf);
  const canonical = (value) => {
    if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
    if (value === null || typeof value !== 'object') return JSON.stringify(value);
    return `{${Object.keys(value).sort().map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`).join(',')}}`;
  };
  const record = JSON.parse(text);
  require(canonical(record) === text, 'The record is not in its one canonical form.');
  return record;
}

// A value in the words of the page.
function inWords(name, value) {
  if (name === 'ts_us') return `${new Date(value / 1000).toISOString().slice(0, 19).replace('T', ' ')} UTC`;
  if (name === 'eps_micro' || name === 'budget_after_micro') {
    const digits = String(value % 1e6).padStart(6, '0').replace(/0+$/, '');
    return value < 0 ? String(value) : `${Math.floor(value / 1e6)}${digits && '.'}${digits}`;
  }
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  return Array.isArray(value) ? value.join(', ') : String(value);
}

// What the page calls a field; others are called by their own name.
const LABELS = new Map(Object.entries({
  ts_us: 'time',
  id: 'record id',
  actor: 'caller (pseudonym)',
  authn: 'authenticated by',
  model_digest: 'weights (SHA-256)',
  certificate_digest: 'certificate (SHA-256)',
  eps_micro: 'epsilon',
  budget_after_micro: 'epsilon left after',
  policy_digest: 'policy (SHA-256)',
  policy_ids: 'policies that decided',
  req_commit: 'sealed request (SHA-256)',
  resp_commit: 'sealed answer (SHA-256)',
  runtime_instance: 'worker',
  runtime_seq: "worker's counter",
  runtime_sig: "worker's signature",
  evidence_digest: 'attestation evidence (SHA-256)',
  intent_seq: 'ends record',
  degraded: 'reduced isolation',
  v: 'version of the form',
}));
const labelOf = (name) => LABELS.get(name) ?? name.replace(/^detail\./, '').replaceAll('_', ' ');

// Whether an element says this, where somebody can see it.
function says(element, text) {
  const { width, height } = element?.getBoundingClientRect() ?? {};
  return element?.textContent === text && (text === '' || (width > 1 && height > 1));
}

function comparePage(leaf, index) {
  const record = parseCanonical(leaf);
  const said = new Map(Object.entries(record).filter(([name]) => name !== 'detail'));
  for (const [name, value] of Object.entries(record.detail ?? {})) said.set(`detail.${name}`, value);
  const left = new Set(said.keys());
  let wrong = says(document.querySelector('h1 .number'), index) ? 0 : 1;
  for (const element of document.querySelectorAll('dl.fields dd, [data-field]')) {
    const name = element.dataset.field ?? '';
    const holds = said.has(name) && says(element.previousElementSibling, labelOf(name)) && says(element, inWords(name, said.get(name)));
    element.classList.toggle('ok', holds);
    element.classList.toggle('bad', !holds);
    left.delete(name);
    wrong += holds ? 0 : 1;
  }
  require(wrong === 0, 'The page shows something else than the record says: look at the marked fields.');
  require(left.size === 0, `The page leaves out what the record says of: ${[...left].join(', ')}.`);
  document.getElementById('leaf').textContent = decoder.decode(leaf);
  return record;
}

// Whether the picture and the list under it are of this path. What is not is marked.
function comparePath(path, proof, good) {
  const boxes = [...document.querySelectorAll('.path .box')];
  const listed = [...document.querySelectorAll('.hashes code')].map((element) => element.textContent);
  const holds = boxes.map((box, at) => {
    const beside = box.dataset.role === 'sibling';
    const step = Number(box.dataset.step);
    const hash = toHex((beside ? proof[step - 1] : path[step]) ?? []);
    const mine = hash !== '' && box.querySelector('.hash').textContent === hash.slice(0, 10) && listed[at] === hash;
    if (!beside || !mine) box.classList.add(good && mine ? 'ok' : 'bad');
    return mine;
  });
  return holds.every(Boolean) && boxes.length === path.length + proof.length && listed.length === boxes.length;
}

// What this browser saw before under the same key: a log never gets smaller, and has one tree of each size.
function compareWithSeen(checkpoint, key) {
  const name = `sealgate.seen.${key.id}.${checkpoint.origin}`;
  const before = JSON.parse(localStorage.getItem(name) ?? 'null');
  const now = { size: String(checkpoint.size), root: toBase64(checkpoint.root) };
  if (before) {
    const conflict = before.size === now.size && before.root !== now.root;
    require(!conflict, `This browser has seen a checkpoint of another tree of ${now.size} records, signed by the same key. Keep both: one of them is a lie.`);
    if (BigInt(before.size) > checkpoint.size) {
      say('note', `This browser has seen a larger checkpoint (${before.size} records). An old page looks like this; so does a log that lost records. Reload.`);
      return;
    }
    say('ok', `Not smaller than what this browser saw before (${before.size} records).`);
  }
  localStorage.setItem(name, JSON.stringify(now));
}

async function verify() {
  const pinning = document.getElementById('pin').checked;
  const { index, size, leaf: leafText, proof: proofText, note } = place.dataset;
  require(/^(0|[1-9]\d{0,18})$/.test(index), 'The page names no record of the log.');
  const key = await parseKey(document.getElementById('vkey').value);
  say('ok', `The key is whole and is named ${key.name}.`);
  const checkpoint = parseNote(fromBase64(note));
  await requireSigned(checkpoint, key);
  say('ok', `The key signed the checkpoint of ${checkpoint.size} records.`);
  require(checkpoint.size === BigInt(size), 'The page names another size than the checkpoint.');
  const leaf = fromBase64(leafText);
  const leafHash = await sha256(Uint8Array.of(0), leaf);
  say('ok', `The record’s hash is ${toHex(leafHash).slice(0, 16)}…`);
  const proof = proofText.split(' ').filter(Boolean).map(fromBase64);
  const path = await climb(leafHash, BigInt(index), checkpoint.size, proof);
  const arrives = same(path.at(-1), checkpoint.root);
  const drawn = comparePath(path, proof, arrives);
  require(arrives, 'The path does not lead to the signed root: this record is not in the log that was signed.');
  require(drawn, 'The path that the page draws is another one: look at the marked hashes.');
  document.getElementById('checkpoint').textContent = decoder.decode(fromBase64(note));
  say('ok', `${path.length - 1} joins lead to the signed root.`);
  const record = comparePage(leaf, index);
  require(record.log === checkpoint.origin, 'The record names another log than the checkpoint.');
  say('ok', 'What this page shows is what the record says.');
  if (pinning) {
    compareWithSeen(checkpoint, key);
    localStorage.setItem(`sealgate.key.${logOf(checkpoint.origin)}`, key.text);
  } else {
    localStorage.removeItem(`sealgate.key.${logOf(checkpoint.origin)}`);
  }
  conclude('ok', `Verified: record ${index} (${record.kind}) stands in the log that ${key.name} signed.`);
}

async function run(event) {
  event.preventDefault();
  steps.replaceChildren();
  verdict.replaceChildren();
  for (const element of document.querySelectorAll('.ok, .bad')) element.classList.remove('ok', 'bad');
  try {
    await verify();
  } catch (error) {
    let sentence = 'The page’s data is malformed.';
    if (error instanceof Wrong) sentence = error.message;
    else if (error.name === 'NotSupportedError') sentence = 'This browser’s WebCrypto has no Ed25519: use a newer one, or sealgate audit show.';
    say('bad', sentence);
    conclude('bad', 'Not verified.');
  }
}

if (place) {
  const [origin] = (() => {
    try {
      return [parseNote(fromBase64(place.dataset.note)).origin];
    } catch {
      return [''];
    }
  })();
  const pinned = localStorage.getItem(`sealgate.key.${logOf(origin)}`);
  document.getElementById('vkey').value = pinned ?? ''; // whatever stood there, the page wrote it
  document.getElementById('pin').checked = pinned !== null;
  document.getElementById('verify-form').addEventListener('submit', run);
}
