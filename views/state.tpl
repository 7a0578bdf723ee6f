% # What is saved, and how the last pass went.
% import time
% if saved and saved != present:
<p class="note warning" data-saved="{{t['repaired']}}">
{{t['moved'].format(present=present, saved=saved)}}</p>
% end
<section aria-labelledby="state">
<h2 id="state">{{t['state']}}</h2>
<dl>
% for field in operator.FIELDS:
%   value = values[field['name']]
<dt>{{field['ru' if ru else 'en'][0]}}</dt>
<dd data-key="{{field['name']}}">{{'••••' if value and field.get('secret') else value or t['no key']}}</dd>
% end
<dt>{{t['address']}}</dt>
<dd data-saved="{{present}}">{{saved or t['no address']}}</dd>
<dt>{{t['waiting']}}</dt>
<dd>{{waiting}}</dd>
<dt>{{t['last pass']}}</dt>
<dd>
% if last_pass:
%   counted = ('sent', 'delivered', 'undelivered', 'failed')
%   when = time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(last_pass['time']))
<time datetime="{{when}}">{{when}}</time><br>
{{', '.join(f'{t[name]}\u00a0{last_pass[name]}' for name in counted)}}
% else:
{{t['no pass']}}
% end
</dd>
</dl>
% for who, what in (last_pass or {}).get('errors', {}).items():
%   code, press_save, _ = what.partition(': ')
%   words = t.get(f'{who} {code}') or press_save and t['press Save']
<p class="note warning" data-saved="{{t['next pass']}}">
{{words or f'{t.get(who, who)} ({code})'}}</p>
% end
</section>
