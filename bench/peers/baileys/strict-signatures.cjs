// Baileys 7.0.0-rc14 expects libsignal's `verifySignature` to throw when a signature is wrong, and doesn't look at what it
// returns. libsignal 6 returns false instead, so no wrong signature is ever noticed, the server's certificates included.
// Loaded before Baileys (`node --require ./strict-signatures.cjs server.js`), this makes it throw, so that Baileys' checks are
// checks. The tests run Baileys with it and without it, the benches without it.

const curve = require('libsignal/src/curve.js');

const { verifySignature } = curve;
curve.verifySignature = (...args) => {
    if (!verifySignature(...args)) {
        throw new Error('Invalid signature');
    }
    return true;
};
