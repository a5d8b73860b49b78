// A gateway as users of Baileys write it: Express, many sockets in one process, authentication state in memory, one route to
// send and one webhook. It is measured beside ours, and it is the independent client of the interoperability test: Baileys as
// npm installs it, not a file changed. Two settings differ from a gateway for WhatsApp: where to connect (`WHATSAPP_WS_URL`),
// and whose certificates to believe (`WHATSAPP_ROOT_KEY`, base64; Baileys verifies the chain against it).

import express from 'express';
import { randomUUID } from 'node:crypto';
import makeWASocket, {
    DisconnectReason,
    WA_CERT_DETAILS,
    initAuthCreds,
    makeCacheableSignalKeyStore,
    proto
} from '@whiskeysockets/baileys';
import pino from 'pino';

const { WHATSAPP_WS_URL, WHATSAPP_ROOT_KEY, WEBHOOK_URL, PORT = '0' } = process.env;
if (!WHATSAPP_WS_URL || !WHATSAPP_ROOT_KEY) {
    throw new Error('WHATSAPP_WS_URL and WHATSAPP_ROOT_KEY must be set');
}
WA_CERT_DETAILS.PUBLIC_KEY = Buffer.from(WHATSAPP_ROOT_KEY, 'base64');

const logger = pino({ level: process.env.LOG_LEVEL ?? 'silent' });
const sessions = new Map();

/** Signal keys in a map, as the examples of in-memory state do it. */
function memoryKeys() {
    const kept = new Map();
    return {
        get: async (type, ids) => {
            const found = {};
            for (const id of ids) {
                let value = kept.get(`${type}:${id}`);
                if (value && type === 'app-state-sync-key') {
                    value = proto.Message.AppStateSyncKeyData.fromObject(value);
                }
                if (value) {
                    found[id] = value;
                }
            }
            return found;
        },
        set: async (data) => {
            for (const [type, values] of Object.entries(data)) {
                for (const [id, value] of Object.entries(values)) {
                    if (value) {
                        kept.set(`${type}:${id}`, value);
                    } else {
                        kept.delete(`${type}:${id}`);
                    }
                }
            }
        }
    };
}

async function tell(event) {
    if (!WEBHOOK_URL) {
        return;
    }
    try {
        const body = JSON.stringify(event);
        await fetch(WEBHOOK_URL, { method: 'POST', headers: { 'content-type': 'application/json' }, body });
    } catch (error) {
        logger.warn({ error: String(error) }, 'the webhook failed');
    }
}

function connect(session) {
    const socket = makeWASocket({
        auth: { creds: session.creds, keys: session.keys },
        waWebSocketUrl: WHATSAPP_WS_URL,
        logger,
        syncFullHistory: false,
        shouldSyncHistoryMessage: () => false,
        generateHighQualityLinkPreview: false
    });
    session.socket = socket;
    socket.ev.on('connection.update', ({ connection, qr, lastDisconnect }) => {
        if (qr) {
            session.qr = qr;
            session.status = 'pairing';
        }
        if (connection === 'open') {
            session.status = 'connected';
            session.qr = undefined;
        }
        if (connection === 'close') {
            const code = lastDisconnect?.error?.output?.statusCode;
            session.error = lastDisconnect?.error?.message;
            if (code === DisconnectReason.restartRequired || (session.creds.registered && code !== DisconnectReason.loggedOut)) {
                session.status = 'reconnecting';
                connect(session);
            } else {
                session.status = 'failed';
            }
        }
    });
    // Baileys has no event of its own for the server's acknowledgement.
    socket.ws.on('CB:ack,class:message', ({ attrs }) => {
        const waiting = session.waiting.get(attrs.id);
        session.waiting.delete(attrs.id);
        waiting?.(attrs.error ? `refused_${attrs.error}` : 'sent');
    });
    socket.ev.on('messages.upsert', ({ messages }) => {
        for (const message of messages) {
            const body = message.message?.conversation ?? message.message?.extendedTextMessage?.text;
            if (message.key.fromMe || !body) {
                continue;
            }
            const data = { from: message.key.remoteJid, id: message.key.id, text: { body } };
            session.received.push(data);
            session.received.splice(0, session.received.length - 10_000);
            tell({ type: 'message.received', session_id: session.id, data });
        }
    });
}

const app = express();
app.use(express.json());
app.param('id', (request, response, next, id) => {
    request.session = sessions.get(id);
    if (request.session) {
        next();
    } else {
        response.status(404).json({ title: 'There is no such session' });
    }
});

app.post('/api/v1/sessions', (request, response) => {
    const id = randomUUID();
    const session = {
        id,
        creds: initAuthCreds(),
        keys: makeCacheableSignalKeyStore(memoryKeys(), logger),
        status: 'starting',
        waiting: new Map(),
        received: []
    };
    sessions.set(id, session);
    connect(session);
    response.status(201).json({ id, status: session.status });
});

app.get('/api/v1/sessions/:id/status', ({ session }, response) => {
    response.json({ status: session.status, reason: session.error ?? null });
});

app.get('/api/v1/sessions/:id/qr', ({ session }, response) => {
    if (session.qr) {
        response.json({ qr: session.qr });
    } else {
        response.status(409).json({ title: `There is no code: ${session.status}` });
    }
});

app.post('/api/v1/sessions/:id/pairing-code', async ({ session, body }, response) => {
    response.json({ code: await session.socket.requestPairingCode(body.phone.replace(/\D/g, '')) });
});

app.get('/api/v1/sessions/:id/messages', ({ session }, response) => {
    response.json({ data: session.received });
});

// Answers once the message is written; with `Prefer: wait=N`, once the server has acknowledged it.
app.post('/api/v1/messages/send', async ({ body, headers }, response) => {
    const session = sessions.get(body.session_id);
    if (session?.status !== 'connected') {
        response.status(409).json({ title: 'The session is not connected' });
        return;
    }
    const wait = Number(/wait=(\d+)/.exec(headers.prefer ?? '')?.[1] ?? 0);
    const jid = body.to.includes('@') ? body.to : `${body.to.replace(/\D/g, '')}@s.whatsapp.net`;
    const messageId = `3EB0${randomUUID().replaceAll('-', '').slice(0, 18).toUpperCase()}`;
    const acknowledged = new Promise((resolve) => {
        if (wait === 0) {
            resolve('queued');
            return;
        }
        session.waiting.set(messageId, resolve);
        setTimeout(() => {
            session.waiting.delete(messageId);
            resolve('queued');
        }, wait * 1000).unref();
    });
    try {
        await session.socket.sendMessage(jid, { text: body.text.body }, { messageId });
    } catch (error) {
        session.waiting.delete(messageId);
        response.status(502).json({ title: String(error) });
        return;
    }
    response.status(202).json({ id: messageId, status: await acknowledged });
});

const server = app.listen(Number(PORT), '127.0.0.1', () => {
    console.log(JSON.stringify({ url: `http://127.0.0.1:${server.address().port}` }));
});
process.on('SIGTERM', () => process.exit(0));
