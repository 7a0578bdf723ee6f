% # install.php: the form in the frame, until BX24.installFinish().
% env = include('texts.tpl')
% t, says = env['t'], env['says']
% rebase('layout.tpl', title=t['app'] + ': ' + t['install'])
<h1>{{t['install']}}</h1>
% include('notes.tpl')
% if not missing:
%   include('form.tpl', page='install')
% end
