% # index.php: the same form without installFinish; above it what is saved, for an administrator.
% env = include('texts.tpl')
% t, says = env['t'], env['says']
% rebase('layout.tpl', title=t['app'] + ': ' + t['index'])
<h1>{{t['index']}}</h1>
% include('notes.tpl')
% if get('refused'):
<p class="note warning" role="alert">
{{says.get(refused, says['OTHER'])}} <code>({{refused}})</code></p>
% elif not missing:
%   include('state.tpl')
%   include('form.tpl', page='index')
% end
