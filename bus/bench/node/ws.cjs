// A server on npm's `ws`: every event goes to every reader, the publisher gets a word.
// Arguments: port, folder of the npm packages.
const { createRequire } = require('node:module');

const { WebSocketServer } = createRequire(`${process.argv[3]}/`)('ws');

const readers = new Set();
const port = Number(process.argv[2]);
const server = new WebSocketServer({ host: '127.0.0.1', port, perMessageDeflate: false, backlog: 2048 });
server.on('connection', (socket) => {
  socket.on('close', () => readers.delete(socket));
  socket.on('message', (data) => {
    const text = data.toString();
    if (text === 'reader') readers.add(socket);
    if (text === 'reader' || text === 'publisher') return socket.send('welcome');
    const event = JSON.stringify(JSON.parse(text));
    for (const reader of readers) reader.send(event);
    socket.send('acknowledged');
  });
});
