// A real OpenID provider on loopback, for the tests: it issues access tokens by client_credentials (RFC 6749 section
// 4.4), plain, bound to a certificate (RFC 8705) or bound to a DPoP key (RFC 9449), and by authorization code with PKCE
// to whoever types a login into its own page.
//
// The first line on stdin is the configuration, each later line a command; each is answered by one line on stdout.
// It ends when stdin does, so it cannot outlive the test that started it.
//
//   {"tls": {"key", "cert", "ca"}, "clients": [{"metadata", "claims"}], "resources", "alg", "ttl_s", "dpop_nonce"}
//   {"do": "add"}                publish another key; answers {"kid"}
//   {"do": "sign", "kid"}        sign with that key from now on
//   {"do": "withdraw", "kid"}    publish and use it no more
//   {"do": "fault", "kind"}      answer for keys and metadata: null, or "status", "garbage", "oversize", "redirect", "stall"
//   {"do": "cache", "value"}     Cache-Control of the key set; null sends none
//   {"do": "down"} {"do": "up"}  stop and start listening, on the same port
//   {"do": "fetches"}            answers {"jwks", "metadata", "tokens"}: how often each was asked for

import * as crypto from 'node:crypto';
import * as https from 'node:https';
import * as readline from 'node:readline';

import { Provider, errors } from 'oidc-provider';

const OVERSIZE = 8 * 1024 * 1024;
const METADATA = ['/.well-known/openid-configuration', '/.well-known/oauth-authorization-server'];

const state = { keys: [], signer: '', fault: null, cache: null, fetches: { jwks: 0, metadata: 0, tokens: 0 } };
const connections = new Set();
const stalled = new Set();
const cookieSecret = crypto.randomBytes(32).toString('hex');
const dpopNonceSecret = crypto.randomBytes(32);
let configuration;
let issuer;
let provider;
let server;

// Keys ----------------------------------------------------------------------------------------------------------------

const KINDS = {
  ES256: ['ec', { namedCurve: 'P-256' }],
  ES384: ['ec', { namedCurve: 'P-384' }],
  EdDSA: ['ed25519', {}],
  RS256: ['rsa', { modulusLength: 2048 }],
  PS256: ['rsa', { modulusLength: 2048 }],
};

function addKey(alg) {
  const [kind, options] = KINDS[alg];
  const { privateKey } = crypto.generateKeyPairSync(kind, options);
  const kid = crypto.randomBytes(8).toString('hex');
  state.keys.push({ ...privateKey.export({ format: 'jwk' }), kid, alg, use: 'sig' });
  return kid;
}

// The provider reads its keys once, so another set of keys is another provider at the same address. A request that the
// one before is still answering is signed with a key which that one knows.
function remake() {
  const keys = [...state.keys];
  const signer = () => keys.find(({ kid }) => kid === state.signer) ?? keys[0];
  provider = new Provider(issuer, {
    clients: configuration.clients.map(({ metadata }) => ({
      redirect_uris: [],
      response_types: [],
      grant_types: ['client_credentials'],
      id_token_signed_response_alg: keys[0].alg, // none is ever made, but a client must name one
      ...metadata,
    })),
    jwks: { keys },
    extraTokenClaims: (ctx, token) => claimsOf(token.clientId),
    ttl: {
      ClientCredentials: configuration.ttl_s,
      AccessToken: configuration.ttl_s,
      AuthorizationCode: 60,
      IdToken: 60,
      Interaction: 600,
      Session: 600,
      Grant: 600,
    },
    cookies: { keys: [cookieSecret] },
    findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    clientAuthMethods: ['none', 'client_secret_basic', 'client_secret_post', 'tls_client_auth', 'self_signed_tls_client_auth'],
    enabledJWA: { dPoPSigningAlgValues: ['ES256', 'EdDSA'] },
    features: {
      devInteractions: { enabled: configuration.people ?? false }, // the provider's own sign-in page
      clientCredentials: { enabled: true },
      dPoP: { enabled: true, nonceSecret: dpopNonceSecret, requireNonce: () => configuration.dpop_nonce ?? false },
      mTLS: {
        enabled: true,
        certificateBoundAccessTokens: true,
        tlsClientAuth: true,
        selfSignedTlsClientAuth: true,
        getCertificate: (ctx) => ctx.socket.getPeerX509Certificate(),
        certificateAuthorized: (ctx) => ctx.socket.authorized,
        certificateSubjectMatches: (ctx, property, expected) => property === 'tls_client_auth_san_uri'
          && ctx.socket.getPeerX509Certificate().subjectAltName === `URI:${expected}`,
      },
      resourceIndicators: {
        enabled: true,
        useGrantedResource: () => true,
        getResourceServerInfo: (ctx, resource) => {
          if (!configuration.resources.includes(resource)) throw new errors.InvalidTarget();
          return {
            audience: resource,
            scope: 'openid infer audit',
            accessTokenFormat: 'jwt',
            accessTokenTTL: configuration.ttl_s,
            jwt: { sign: { alg: signer().alg, kid: signer().kid } },
          };
        },
      },
    },
  });
}

function claimsOf(clientId) {
  return configuration.clients.find(({ metadata }) => metadata.client_id === clientId)?.claims ?? {};
}

// Requests ------------------------------------------------------------------------------------------------------------

function answer(request, response) {
  const { pathname } = new URL(request.url, issuer);
  const what = pathname === '/jwks' ? 'jwks' : METADATA.includes(pathname) ? 'metadata' : 'tokens';
  state.fetches[what] += 1;
  if (what !== 'tokens' && state.fault !== null) {
    fail(response, state.fault);
    return;
  }
  if (pathname === METADATA[1]) request.url = METADATA[0]; // RFC 8414: the same document
  if (what === 'jwks' && state.cache !== null) response.setHeader('Cache-Control', state.cache);
  provider.callback()(request, response);
}

function fail(response, kind) {
  switch (kind) {
    case 'status': response.writeHead(503).end('no'); return;
    case 'garbage': response.writeHead(200, { 'content-type': 'application/json' }).end('{"keys": [{"kty"'); return;
    case 'oversize': response.writeHead(200, { 'content-type': 'application/json' }).end(' '.repeat(OVERSIZE)); return;
    case 'redirect': response.writeHead(302, { location: `${issuer}/elsewhere` }).end(); return;
    case 'stall': stalled.add(response); return;
    default: throw new Error(`no fault ${kind}`);
  }
}

function listen(port) {
  server = https.createServer({ ...configuration.tls, requestCert: true, rejectUnauthorized: false }, answer);
  server.on('connection', (socket) => {
    connections.add(socket);
    socket.on('close', () => connections.delete(socket));
  });
  return new Promise((done) => {
    server.listen(port, '127.0.0.1', () => done(server.address().port));
  });
}

function hangUp() {
  const gone = new Promise((done) => {
    server.close(done);
  });
  for (const socket of connections) socket.destroy();
  stalled.clear();
  return gone;
}

// Commands ------------------------------------------------------------------------------------------------------------

async function obey(command) {
  switch (command.do) {
    case 'add': {
      const kid = addKey(command.alg ?? configuration.alg);
      remake();
      return { kid };
    }
    case 'sign':
      state.signer = command.kid;
      return {};
    case 'withdraw':
      state.keys = state.keys.filter(({ kid }) => kid !== command.kid);
      remake();
      return {};
    case 'fault':
      state.fault = command.kind;
      for (const response of stalled) response.destroy();
      stalled.clear();
      return {};
    case 'cache':
      state.cache = command.value;
      return {};
    case 'down':
      await hangUp();
      return {};
    case 'up':
      await listen(Number(new URL(issuer).port));
      return {};
    case 'fetches':
      return state.fetches;
    default:
      throw new Error(`no command ${command.do}`);
  }
}

async function begin(text) {
  configuration = text;
  const port = await listen(0);
  issuer = `https://localhost:${port}`;
  state.signer = addKey(configuration.alg);
  remake();
  return { issuer, kid: state.signer };
}

const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const lines = readline.createInterface({ input: process.stdin });
for await (const line of lines) {
  const text = JSON.parse(line);
  say(configuration === undefined ? await begin(text) : await obey(text));
}
process.exit(0);
