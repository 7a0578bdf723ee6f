% # What every page has to say: nothing is really sent, or the application is not set up yet.
% if demo:
<p class="note">{{t['demo']}}</p>
% end
% if missing:
<div class="note warning">
<p>{{t['missing']}}</p>
<ul>
%   for name in missing:
<li><code>{{name}}</code></li>
%   end
</ul>
</div>
% end
