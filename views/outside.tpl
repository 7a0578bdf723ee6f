% # Opened without the frame's fields: how to open it, in both languages (there is no LANG here).
% rebase('layout.tpl', ru=False, title=include('texts.tpl')['t']['app'])
% for lang in ('en', 'ru'):
%   t = include('texts.tpl', ru=lang == 'ru')['t']
<section lang="{{lang}}">
<h1>{{t['outside']}}</h1>
<p>{{t['how']}}</p>
%   include('notes.tpl')
</section>
% end
