// The pretend BX24.js: our own small script that speaks to the portal's page
// as the real one does.
// To the parent: COMMAND:JSON:CALLBACK:APP_SID; from the parent: CALLBACK:JSON.
window.BX24 = null;
(function () {
  const name = /^([^|]+)\|([01])\|(\w+)$/.exec(window.name);
  if (!name || window.parent === window) {
    throw new Error('Unable to initialize Bitrix24 JS library!');
  }
  const [, domain, protocol, sid] = name;
  const parentOrigin = (protocol === '1' ? 'https://' : 'http://') + domain;
  const waiting = {}; // CALLBACK → function
  let data = null; // what getInitData answered
  let expires = 0; // milliseconds
  let asked = 0;
  let callbacks = []; // of init(), until there is data

  function tell(command, params, callback) {
    const key = callback ? 'bx24_' + (asked += 1) : '';
    if (key) waiting[key] = callback;
    const json = params ? JSON.stringify(params) : '';
    window.parent.postMessage([command, json, key, sid].join(':'), parentOrigin);
  }

  window.addEventListener('message', function (event) {
    if (event.source !== window.parent || event.origin !== parentOrigin) return;
    const [, key, json] = /^([^:]*):?([^]*)$/.exec(String(event.data));
    const callback = waiting[key];
    delete waiting[key];
    if (callback) callback(json ? JSON.parse(json) : undefined);
  });

  function learn(answer) {
    data = Object.assign(data || {}, answer);
    expires = Date.now() + Number(data.AUTH_EXPIRES) * 1000;
  }

  // PHP's http_build_query: a[b][0]=v
  function encode(value, path, out) {
    if (value !== null && typeof value === 'object') {
      Object.keys(value).forEach(function (key) {
        encode(value[key], path ? path + '[' + key + ']' : key, out);
      });
    } else if (value !== null && value !== undefined) {
      out.append(path, typeof value === 'boolean' ? Number(value) : value);
    }
    return out;
  }

  function Result(status, answer) {
    const text = answer.error + ': ' + answer.error_description + ' (' + status + ')';
    const error = answer.error && { status, ex: answer, toString: () => text };
    this.data = () => answer.result;
    this.error = () => error || undefined;
    this.error_description = () => answer.error_description;
    this.time = () => answer.time;
  }

  function call(method, params, callback, again) {
    const request = new XMLHttpRequest();
    request.open('POST', parentOrigin + data.PATH + '/' + method + '.json');
    request.onloadend = function () {
      let answer;
      try {
        answer = JSON.parse(request.responseText);
      } catch (error) {
        answer = { error: 'ERROR_NETWORK', error_description: 'no answer' };
      }
      if (answer.error === 'expired_token' && again) {
        BX24.refreshAuth(() => call(method, params, callback, false));
      } else if (callback) {
        callback(new Result(request.status, answer));
      }
    };
    request.send(encode(Object.assign({ auth: data.AUTH_ID }, params), '', new URLSearchParams()));
  }

  window.BX24 = {
    init(callback) {
      if (data) return callback();
      callbacks.push(callback);
      if (callbacks.length === 1) {
        tell('getInitData', null, function (answer) {
          learn(answer);
          callbacks.splice(0).forEach((one) => one());
        });
      }
    },
    getAuth() {
      return data && expires > Date.now() && {
        access_token: data.AUTH_ID, refresh_token: data.REFRESH_ID, domain,
        expires_in: Number(data.AUTH_EXPIRES), member_id: data.MEMBER_ID };
    },
    refreshAuth(callback) {
      tell('refreshAuth', null, function (answer) {
        learn(answer);
        if (callback) callback(BX24.getAuth());
      });
    },
    isAdmin: () => Boolean(data && data.IS_ADMIN),
    getLang: () => data && data.LANG,
    getDomain: (whole) => (whole ? parentOrigin : domain),
    callMethod: (method, params, callback) => call(method, params, callback, true),
    installFinish() {
      if (data && data.INSTALL) tell('setInstallFinish');
    },
    fitWindow(callback) {
      BX24.resizeWindow('100%', document.body.scrollHeight, callback);
    },
    resizeWindow: (width, height, callback) => tell('resizeWindow', { width, height }, callback),
    setTitle: (title, callback) => tell('setTitle', { title }, callback),
    reloadWindow: (callback) => tell('reloadWindow', null, callback),
    closeApplication: (callback) => tell('closeApplication', null, callback),
  };
})();
