// A server on npm's `socket.io`: one room. Arguments: port, folder of the npm packages.
const { createRequire } = require('node:module');

const { Server } = createRequire(`${process.argv[3]}/`)('socket.io');

const server = new Server({ transports: ['websocket'], perMessageDeflate: false });
server.on('connection', (socket) => {
  socket.on('hello', (answer) => answer('welcome'));
  socket.on('join', (answer) => {
    socket.join('bench');
    answer('welcome');
  });
  socket.on('publish', (event, answer) => {
    server.to('bench').emit('event', event);
    answer('acknowledged');
  });
});
server.listen(Number(process.argv[2]));
