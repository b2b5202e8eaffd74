// A server on npm's `ws`: every event goes to every reader, the publisher gets a word. Port: first argument.
const { WebSocketServer } = require('ws');

const readers = new Set();
const server = new WebSocketServer({ host: '127.0.0.1', port: Number(process.argv[2]), perMessageDeflate: false, backlog: 2048 });
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
